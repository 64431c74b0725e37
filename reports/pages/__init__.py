"""The pictures: charts, static figures, tables, one HTML page."""
