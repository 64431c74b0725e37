"""Ablation, scaling, performance profiles, control, and the difference of two reports."""
