"""Published numbers as data, and inconsistencies between them."""
