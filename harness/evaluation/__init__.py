"""Evaluation: from samples to metric values."""
