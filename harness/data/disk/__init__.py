"""Data sets read from disk, one reader per kind of file."""
