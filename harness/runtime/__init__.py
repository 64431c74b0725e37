"""Processes, devices, determinism, precision and random streams."""
