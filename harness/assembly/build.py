"""From a spec to the objects that it names: the backbone, the method, the architectures of its encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES
from harness.backbone.tokens import Part, kind_of
from harness.config import registry
from harness.config.spec import RunSpec
from harness.data.dataset import pictured, shapes_of
from harness.data.open import outlined
from harness.data.parts import weights_of
from harness.errors import UserError
from harness.flow.batch import View


def planned(spec: RunSpec) -> tuple[Any, list[Any]]:
    """The method of a spec and the architectures of its encoders, from the spec alone."""
    dataset = outlined(spec.data)
    backbone, seen = backbone_config(spec, dataset), seen_encoders(spec, dataset)
    dims, weights = [network.dim for network in seen], weights_of(dataset, spec.data)
    return build_method(spec, backbone, dims, weights), seen


def seen_encoders(spec: RunSpec, dataset: Any) -> list[Any]:
    """The architectures of a spec's encoders, on what the data set shows."""
    grid, shown = backbone_config(spec, dataset).grid, pictured(dataset)
    return [architecture(choice.name, shown, grid) for choice in spec.method.needs().encoders]


def architecture(encoder: str, dataset: Any, grid: tuple[int, int]) -> Any:
    """The `Architecture` of an encoder's name on images of a data set: no weights are read."""
    family, _, model = encoder.partition(":")
    return registry.load("encoder", family).architecture(model, dataset.shape, dataset.classes, grid)


def build_method(
    spec: RunSpec, backbone: SiTConfig, encoder_dims: Sequence[int], weights: tuple[float, ...] = ()
) -> Any:
    """The method of a spec, with the weights of a sample's parts in its loss; its `setting.backbone` has the extra token that it may need."""
    cls, needs = registry.load("method", spec.method.name), spec.method.needs()
    if needs.summary:
        backbone = replace(backbone, extra=encoder_dims[0])
    setting = {"time": spec.time, "encoder_dims": tuple(encoder_dims), "weights": weights}
    return cls.build(spec.method, backbone, **setting)


def empty_view(encoder: Any, size: int, method: Any, device: torch.device) -> View:
    """A view of the right shapes without numbers."""
    tokens, needs = method.setting.backbone.tokens, method.needs()
    empty = lambda *shape: torch.empty(size, *shape, device=device)  # noqa: E731
    summary = empty(encoder.dim) if needs.summary else None
    heads = (needs.attention, encoder.heads, tokens, tokens)
    return View(empty(tokens, encoder.dim), summary, empty(*heads) if needs.attention else None)


def weightless(backbone: SiTConfig) -> SiT:
    """The network on the meta device, where it takes no memory."""
    with torch.device("meta"):
        return SiT(backbone).to("meta")


def backbone_config(spec: RunSpec, dataset: Any) -> SiTConfig:
    """The backbone of a spec on a data set; raises `UserError` where the patch does not divide its samples."""
    asked, (shape, *beside) = spec.backbone, shapes_of(dataset)
    try:
        return SiTConfig(
            SIZES[asked.size],
            asked.patch,
            shape,
            dataset.classes,
            asked.learn_sigma,
            patch_time=asked.patch_time,
            beside=tuple(Part(other, (asked.parts.of(kind_of(other)).patch,)) for other in beside),
            positions=asked.positions,
        )
    except ValueError as error:
        raise UserError(f"backbone.{error}; choose another backbone.patch or data.resolution") from error
