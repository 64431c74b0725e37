"""Evaluation of runs: from samples to metric values."""
