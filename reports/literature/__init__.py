"""The paper literature: published numbers as data, and what is inconsistent between them."""
