"""Audio extractors: networks over windows of recordings."""
