"""Policies that act in closed loop: their episodes, the record, and pictures of them."""
