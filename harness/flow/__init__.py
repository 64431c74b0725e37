"""The path from data to noise, the samplers, and the golden vectors that hold them to published code."""
