"""Metrics of data whose ground truth is known: video, sound, text."""
