"""Runs whose network is frozen apart from the layers of further parts (`start.frozen`)."""

from __future__ import annotations

from torch import nn

from harness.config.spec import RunSpec


def freeze(model: nn.Module, spec: RunSpec) -> None:
    """Leave the layers of further parts alone to train if the spec freezes the others."""
    if spec.start.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_of_further_parts(name))


def is_of_further_parts(name: str) -> bool:
    """Return whether a weight belongs to an input or output layer of a part after the first."""
    return name.startswith("beside_embedders.") or ".linear_beside." in name
