"""Codecs between samples and latents, and data sets of encoded latents."""
