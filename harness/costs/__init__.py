"""Cost of runs in seconds, FLOPs and bytes: counted, measured and estimated."""
