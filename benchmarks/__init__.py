"""Measurements: ours against what a user would run instead, interleaved in one process."""
