"""Files that metrics read and write: media, weights, reference statistics and caches."""
