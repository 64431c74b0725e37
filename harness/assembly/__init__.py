"""Construction of a run's objects from its spec, and the checks that they are compatible."""
