"""The paper desk: published numbers as data, and what is inconsistent between them."""
