"""Frozen encoders, whose features an alignment method may aim at."""
