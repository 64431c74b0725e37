"""The spec of a run, its presets and overrides, and the registry of names."""
