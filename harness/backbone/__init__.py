"""The SiT network, its times and tokens, and the conversion of released weights."""
