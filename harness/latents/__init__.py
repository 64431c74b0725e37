"""Codecs: samples to latents and back. base.py says what one is; registry.py has their names."""
