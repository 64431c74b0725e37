"""Video extractors: networks over clips."""
