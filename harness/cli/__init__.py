"""The commands of `flowrace` that train, measure and list."""
