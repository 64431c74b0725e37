"""The network of a configuration: a SiT, or an MMDiT for a configuration with text."""

from __future__ import annotations

from harness.backbone.config import BackboneConfig
from harness.backbone.mmdit import MMDiT, MMDiTConfig
from harness.backbone.network import Backbone
from harness.backbone.sit import SiT


def network_of(config: BackboneConfig) -> Backbone:
    """Return the network that a configuration describes, with PyTorch's initial weights."""
    return MMDiT(config) if isinstance(config, MMDiTConfig) else SiT(config)
