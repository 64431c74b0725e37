"""Layouts in which other code stores latents, one reader per layout."""
