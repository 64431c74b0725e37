"""The training loop, and what stopping and resuming it takes."""
