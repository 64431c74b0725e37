"""Exchange of weights with released code: files read, layouts found, weights converted and verified."""
