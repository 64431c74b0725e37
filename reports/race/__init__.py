"""Runs, arms, the target and the verdict."""
