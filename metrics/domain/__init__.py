"""Metrics for data with known ground truth: video dynamics, audio-video synchrony, typography, control."""
