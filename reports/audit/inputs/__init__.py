"""Claim files and the logs that a claim is judged on."""
