"""Feature extractors: the frozen networks whose features metrics compare."""
