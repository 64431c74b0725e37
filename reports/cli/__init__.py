"""The commands of `flowrace` that report and audit."""
