"""The commands of `flowrace` that run studies."""
