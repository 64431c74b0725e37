"""`flowrace eval SAMPLES`: what a path holds, its features, and its metrics against a reference."""
