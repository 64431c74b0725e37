"""Studies: exact plans of runs, launchers that run them, and searches of settings."""
