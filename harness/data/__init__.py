"""Data sets, one family a file; a sample is a pure function of its index."""
