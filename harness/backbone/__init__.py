"""The SiT network, its times and tokens, and the border to the authors' checkpoints."""
