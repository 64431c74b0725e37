"""The commands of sweeps, their tables and their progress display."""
