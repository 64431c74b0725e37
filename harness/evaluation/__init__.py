"""From samples to metric values during a run."""
