"""Numbers from features: FID, KID, CMMD, precision and recall, ..."""
