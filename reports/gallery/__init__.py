"""The gallery: a page of committed studies, made from a folder of CSV files and one TOML file a study."""
