"""Measurements of flowrace against the alternatives that users would run, interleaved in one process."""
