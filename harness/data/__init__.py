"""Data sets: protocol, opening and splitting, and batches as a pure function of sample indices."""
