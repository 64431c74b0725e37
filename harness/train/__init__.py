"""The training loop and what it needs to be stopped and resumed."""
