"""Launchers: each takes command lines and runs them; none of them knows what a run is."""
