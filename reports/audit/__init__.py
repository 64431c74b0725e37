"""Audits of claimed speed-ups: preconditions, decision, register, self-test and pilot."""
