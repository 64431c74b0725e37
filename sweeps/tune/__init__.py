"""Search for settings on equal budgets."""
