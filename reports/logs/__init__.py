"""Curves from the logs of other tools: one reader a kind of file, and the names of their runs."""
