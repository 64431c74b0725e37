"""The inputs of an audit: claim files, and runs from records, CSV files and MLflow stores."""
