"""A study file, the plan of its runs, and the state of those runs."""
