"""Locks, atomic writes and the cache folder, for files that processes share; output to the terminal."""
