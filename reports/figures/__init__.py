"""Chart data and SVG drawings."""
