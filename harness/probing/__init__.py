"""Probing: the information in the layers of trained networks and in encoders."""
