"""The spec of a run, its presets and overrides, the registry of names, and the options that commands
share."""
