"""Launchers: each runs command lines and knows nothing of their meaning; the runner decides which runs of a study to start."""
