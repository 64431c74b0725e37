"""Media, weights and cached statistics on disk."""
