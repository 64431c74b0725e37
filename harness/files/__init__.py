"""Files shared by processes: locks, atomic writes, the cache folder, the terminal."""
