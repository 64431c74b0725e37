"""Captions as conditions: frozen text encoders, their cached features, and which caption a sample shows."""
