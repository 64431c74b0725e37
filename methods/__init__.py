"""Training objectives, one a file. Each reduces to plain flow matching bit for bit when its knobs are at
zero."""
