"""What the layers of a trained network know."""
