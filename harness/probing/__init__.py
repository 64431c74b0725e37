"""Probes: what the layers of a trained network represent."""
