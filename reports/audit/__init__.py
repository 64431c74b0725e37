"""One claim against curves: preconditions, decision, card; from records, stores and anybody's CSV."""
