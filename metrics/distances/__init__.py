"""Distances and scores computed from features: FID, KID, CMMD, precision and recall, ..."""
