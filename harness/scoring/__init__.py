"""Scoring of samples that anybody made: what a path holds, one pass of a network over it, and the values."""
