"""Readers of the files that users have, one reader per kind of file."""
