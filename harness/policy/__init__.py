"""Policies: networks that generate chunks of actions from the current observation of a robot."""
