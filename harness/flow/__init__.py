"""The path from data to noise, the samplers, and the golden vectors that compare them with released code."""
