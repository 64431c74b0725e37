"""Launchers of command lines (local, SLURM, Ray), and the runner that starts the runs of a study."""
