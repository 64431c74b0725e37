"""Statistics of curves and times, without knowledge of runs."""
