"""A run directory and its MLflow mirror: events, checkpoints, spec."""
