"""The network of a configuration."""

from __future__ import annotations

from harness.backbone.network import Backbone, BackboneConfig
from harness.backbone.sit import SiT


def network_of(config: BackboneConfig) -> Backbone:
    """Return the network that a configuration describes, with PyTorch's initial weights."""
    return SiT(config)
