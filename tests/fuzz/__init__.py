"""Mutated files at every door: each is read or refused in one sentence, within bounds, and left as it is."""
