"""From a spec to its objects, and whether they go together."""
