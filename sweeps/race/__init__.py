"""Races that stop when their claims are decided: the file, the looks, and what they are expected to cost."""
