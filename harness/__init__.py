"""What every race shares: the equal footing. Methods, data sets and encoders are reached by registered
name."""

__version__ = "0.2.0"
