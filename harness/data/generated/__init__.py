"""Toy data sets that are computed, not read."""
