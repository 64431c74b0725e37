"""The commands `flowrace report`, `figures`, `audit` and `claims`."""
