"""Extractors of video."""
