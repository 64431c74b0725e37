"""Commands of `flowrace` that train, measure and list."""
