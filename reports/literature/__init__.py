"""The database of published numbers, and the inconsistencies between them."""
