"""The builder of a spec's backbone, its method and the architectures of its encoders.

No other module builds the network of a spec. The returned network is final: extra token, activation
checkpointing and compilation are included.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.assembly.condition import text_shape
from harness.assembly.given import given_tokens
from harness.backbone.config import BackboneConfig
from harness.backbone.kinds import network_of
from harness.backbone.mmdit import MMDiTConfig
from harness.backbone.network import Backbone
from harness.backbone.rotary import check_heads
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import SIZES, TEXT_TO_IMAGE, size_named
from harness.backbone.tokens import Part
from harness.config import registry
from harness.config.backbone_spec import BackboneSpec
from harness.config.spec import RunSpec, RuntimeSpec
from harness.data.dataset import Capabilities, Dataset, part_kinds, shapes_of
from harness.data.open import outlined
from harness.data.parts import weights_of
from harness.encoders.base import Architecture, Encoder, architecture_of
from harness.errors import UserError, unknown
from harness.flow.batch import View
from harness.flow.method import TrainingMethod
from harness.flow.samplers import Rule, plain

PIECES = 48
"""Pieces of compiled code of a run: passes of student, teacher and samplers, with and without guidance, for
full and last batches, each with three."""


def backbone_config(spec: RunSpec, dataset: Dataset) -> BackboneConfig:
    """Return the backbone's configuration for a spec on a data set, the extra token of its method included.

    Raises `UserError` if the patch does not divide the samples.
    """
    settings, shape = spec.backbone, shapes_of(dataset)[0]
    size = size_named(settings.size)
    if size is None:
        raise unknown("backbone.size", settings.size, {**SIZES, **TEXT_TO_IMAGE})
    # Any: fields of either kind.
    own: dict[str, Any] = {}
    if settings.kind == "mmdit":
        own = {"text": text_shape(spec, dataset), "text_time": settings.text_time}
    try:
        further = parts_after_first(dataset, settings)
        config = (MMDiTConfig if settings.kind == "mmdit" else SiTConfig)(
            size,
            settings.patch,
            shape,
            dataset.classes,
            settings.learn_sigma,
            patch_time=settings.patch_time,
            beside=tuple(further),
            positions=settings.positions,
            bottleneck=settings.bottleneck,
            prediction=spec.flow.prediction,
            **own,
        )
    except ValueError as error:
        raise UserError(f"backbone.{error}; choose another backbone.patch or data.resolution") from error
    _check_positions(config)
    needs, given = spec.method.needs(), given_tokens(spec.data, config, dataset.modality)
    extra = architecture_of(needs.encoders[0], dataset, config.grid).dim if needs.summary else 0
    try:
        return replace(
            config,
            extra=extra,
            outputs=needs.outputs,
            fused=needs.fused,
            features=needs.features,
            given=given,
            given_noise=spec.data.given_noise,
        )
    except ValueError as error:
        raise UserError(f"method.name = {spec.method.name}: {error}") from error


def _check_positions(config: BackboneConfig) -> None:
    """Raise `UserError` if rotary positions do not fit into the heads of a network."""
    try:
        if config.positions == "rotary":
            check_heads(config.size.width // config.size.heads, config.parts)
    except ValueError as error:
        raise UserError(
            f"backbone.{error}; set backbone.positions to sincos, or choose a backbone.size with wider heads"
        ) from error


def parts_after_first(dataset: Dataset, settings: BackboneSpec) -> list[Part]:
    """Return the parts of the samples after the first; raises ValueError if a patch does not divide one."""
    named = Capabilities(dataset).kinds
    pairs = zip(shapes_of(dataset)[1:], part_kinds(dataset)[1:], strict=True)
    return [Part(shape, (settings.parts.of(kind).patch,), kind if named else "") for shape, kind in pairs]


def build_backbone(
    config: BackboneConfig, runtime: RuntimeSpec, *, copy_of: Backbone | None = None
) -> Backbone:
    """Return the network as a run uses it, with PyTorch's initial weights or those of `copy_of`.

    Compilation is block by block, so that all blocks share one piece of code for each kind of pass. Shapes
    are static, so that another batch size in evaluation does not change the code that training runs.
    """
    # A copy is not compiled, even if the original is.
    model = network_of(config) if copy_of is None else copy.deepcopy(copy_of)
    model.checkpoint_activations = runtime.checkpoint_activations
    if runtime.compile:
        # For Inductor, whose own choices of kernels `environment.prepare` leaves as they are.
        torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())
        _allow_pieces_of_code()
        for block in model.blocks:
            block.compile(dynamic=False)
    return model


def _allow_pieces_of_code() -> None:
    """Raise torch's limit of pieces of code for a block, beyond which it would run without compilation.

    Each kind of pass has up to three: the first block of texts that are shared, the last one, and the others.
    """
    from torch import _dynamo

    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, PIECES)


def weightless(config: BackboneConfig) -> Backbone:
    """Return the network on the meta device, where weights take no memory."""
    with torch.device("meta"):
        return network_of(config).to("meta")


def build_method(
    spec: RunSpec, backbone: BackboneConfig, encoder_dims: Sequence[int], weights: Sequence[float] = ()
) -> TrainingMethod:
    """Return the method of a spec; `weights` are those of a sample's parts in the loss."""
    cls = registry.load("method", spec.method.name)
    return cls.build(
        spec.method,
        backbone,
        time=spec.time,
        encoder_dims=tuple(encoder_dims),
        weights=tuple(weights),
        flow=spec.flow,
    )


def sampling_rule(spec: RunSpec, dataset: Dataset) -> Rule:
    """Return the velocity that samplers integrate for the method of a spec."""
    if registry.load("method", spec.method.name).velocity is TrainingMethod.velocity:
        return plain
    # Only settings are read, so the method has no encoder, and its modules take no memory.
    with torch.device("meta"):
        return build_method(spec, backbone_config(spec, dataset), ()).velocity


def encoder_architectures(spec: RunSpec, dataset: Dataset) -> list[Architecture]:
    """Return the architectures of a spec's encoders on the images of a data set."""
    grid = backbone_config(spec, dataset).grid
    return [architecture_of(choice, dataset, grid) for choice in spec.method.needs().encoders]


def method_of_spec(spec: RunSpec) -> tuple[TrainingMethod, list[Architecture]]:
    """Return the method of a spec and the architectures of its encoders, from the spec alone."""
    dataset = outlined(spec.data)
    encoders = encoder_architectures(spec, dataset)
    dims = [encoder.dim for encoder in encoders]
    return build_method(spec, backbone_config(spec, dataset), dims, weights_of(dataset, spec.data)), encoders


def empty_view(
    encoder: Encoder | Architecture, size: int, method: TrainingMethod, device: torch.device
) -> View:
    """Return an encoder's view of `size` samples with uninitialised values."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(size, *shape, device=device)

    tokens, needs = method.setting.backbone.tokens, method.needs()
    summary = empty(encoder.dim) if needs.summary else None
    attention = empty(needs.attention, encoder.heads, tokens, tokens) if needs.attention else None
    return View(empty(tokens, encoder.dim), summary, attention)
