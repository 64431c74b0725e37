"""Seconds, FLOPs and bytes: counted, measured, estimated."""
