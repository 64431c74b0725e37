"""Simulated tasks in which policies act: one seam, an embedded task, and those of other packages."""
