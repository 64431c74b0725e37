"""The equal footing of every race: backbone, data, trainer, evaluation and records.

Methods, data sets and encoders are reached by their registered names.
"""

__version__ = "0.2.0"
