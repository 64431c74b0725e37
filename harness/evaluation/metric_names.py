"""Metric names of `eval.metrics`: their meaning, and the network that each needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

from harness.config.encoder_fields import innermost
from harness.config.evaluation_spec import EvalSpec
from harness.errors import UserError, unknown
from harness.evaluation.metric_table import (
    CAPTION_SCORES,
    HELD_OUT_LOSS,
    REFERENCE_FREE,
    ReferenceFree,
    is_sampled,
)
from harness.records.evaluations import SUCCESS
from metrics import MetricError
from metrics.extractors.registry import extractor_modality
from metrics.files.hashing import file_sha256
from metrics.suite import METRICS, RESERVED

SCRIPT = "torchscript"
OVER_ANY = tuple(value for metric in METRICS for value in metric.values if value != "sfid")
"""Values that any extractor can measure, written `<value>:<extractor>`."""


ALIASES = {
    **{
        f"dinov2-{size[0]}": f"timm:vit_{size}_patch14_dinov2" for size in ("small", "base", "large", "giant")
    },
    "clip-vit-l-336": "open_clip:ViT-L-14-336.openai",
}
"""Short name of an extractor -> the name of the same network as an encoder."""


class MetricSpec(NamedTuple):
    """One entry of `eval.metrics`."""

    name: str
    value: str
    """The value computed: a name of metrics.suite, or for a reference-free metric the entry itself."""
    extractor: str
    """The network's name in metrics.extractors.registry; empty if no features are needed."""

    @property
    def compares_features(self) -> bool:
        """Return whether the value compares features of generated and real samples."""
        return bool(self.extractor) and self.reference_free is None

    @property
    def reference_free(self) -> ReferenceFree | None:
        return REFERENCE_FREE.get(self.name) or CAPTION_SCORES.get(self.value)


def metric_spec(name: str) -> MetricSpec:
    """Parse a metric's name; raises `UserError`, with the nearest match, for an unknown one."""
    if name in REFERENCE_FREE or not is_sampled(name):
        return MetricSpec(name, name, "")
    if name in RESERVED:
        return MetricSpec(name, RESERVED[name].value, RESERVED[name].extractor)
    value, _, extractor = name.partition(":")
    if value in CAPTION_SCORES:
        if not extractor.removeprefix("open_clip:") or not extractor.startswith("open_clip:"):
            raise UserError(
                f"metric '{name}' in eval.metrics needs a network with an image and a text tower: write "
                f"{value}:open_clip:<model>, for example {value}:open_clip:ViT-L-14.openai"
            )
        return MetricSpec(name, value, extractor)
    if value not in OVER_ANY:
        over = [f"{known}:{extractor or '<extractor>'}" for known in OVER_ANY]
        over += [f"{known}:{extractor or 'open_clip:<model>'}" for known in CAPTION_SCORES]
        known = [*RESERVED, *REFERENCE_FREE, HELD_OUT_LOSS, f"{SUCCESS}<task>", *over]
        raise unknown("metric in eval.metrics", name, known)
    if not extractor:
        raise UserError(
            f"metric '{name}' in eval.metrics names no network: write {value}:<extractor>, for example "
            f"{value}:local"
        )
    return MetricSpec(name, value, extractor)


def input_kind(metric: MetricSpec) -> str:
    """Return the network's modality: `image`, `video` or `audio`.

    Raises `UserError` for an unknown network.
    """
    if metric.extractor.startswith(f"{SCRIPT}@"):
        return "image"
    try:
        return extractor_modality(metric.extractor)
    except MetricError as error:
        raise UserError(f"eval.metrics '{metric.name}': {error}") from error


def addressed(spec: EvalSpec) -> EvalSpec:
    """Replace every `torchscript:<file>` of the spec by `torchscript@<8 digits of its sha256>`.

    The path goes to `eval.weights`, which is not hashed, so moving the file does not change the run id.
    Raises `UserError` for a file that cannot be read.
    """
    names, weights = [], dict(spec.weights)
    for name in spec.metrics:
        value, _, extractor = name.partition(":")
        if extractor.startswith(f"{SCRIPT}:"):
            extractor, file = _by_content(extractor.removeprefix(f"{SCRIPT}:"), name)
            weights[extractor.partition("?")[0]] = file
            name = f"{value}:{extractor}"
        names.append(name)
    return spec.model_copy(update={"metrics": tuple(names), "weights": weights})


def located(extractor: str, weights: Mapping[str, str]) -> tuple[str, str | None, str]:
    """Return the name for `load_extractor`, the weights file, if given, and the prefix of its sha256.

    Raises `UserError` for a TorchScript file whose path is not in `weights`.
    """
    if not extractor.startswith(f"{SCRIPT}@"):
        return extractor, weights.get(extractor), ""
    key, mark, options = extractor.partition("?")
    if key not in weights:
        raise UserError(
            f"metric network '{key}': eval.weights does not name its file; add --set eval.weights.{key}=FILE"
        )
    return f"{SCRIPT}:{weights[key]}{mark}{options}", None, key.removeprefix(f"{SCRIPT}@")


def is_same_network(extractor: str, encoder: str) -> bool:
    """Return whether an extractor and an alignment encoder are the same network.

    A name without a tag matches any weights.

    >>> is_same_network("dinov2-s", "cached:timm:vit_small_patch14_dinov2.lvd142m")
    True
    >>> is_same_network("local", "local:small")
    False
    """
    (first, its_tag), (second, other_tag) = _network(extractor), _network(encoder)
    return first == second and (its_tag == other_tag or not its_tag or not other_tag)


def favoured(metrics: Iterable[str], encoders: Iterable[str]) -> list[str]:
    """Return the metrics that are computed by one of these encoders."""
    encoders = list(encoders)
    return [
        name for name in metrics if any(is_same_network(_extractor_of(name), encoder) for encoder in encoders)
    ]


def _extractor_of(name: str) -> str:
    """Return the extractor in a metric's name, without checking it."""
    return RESERVED[name].extractor if name in RESERVED else name.partition(":")[2]


def _network(name: str) -> tuple[str, str]:
    """Return `family:model` and the tag of its weights."""
    name = innermost(name)
    model, _, tag = ALIASES.get(name, name).partition(".")
    return model, tag


def _by_content(text: str, metric: str) -> tuple[str, str]:
    """Turn `<file>?options` into the name by content, with sorted options, and the file."""
    file, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    try:
        sha256 = file_sha256(Path(file), expected=options.pop("sha256", ""))
    except MetricError as error:
        raise UserError(f"eval.metrics '{metric}': {error}") from error
    rest = urlencode(sorted(options.items()))
    return f"{SCRIPT}@{sha256[:8]}" + (f"?{rest}" if rest else ""), file
