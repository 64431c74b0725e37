"""The metrics that a race can be measured by: what a name means, where its network lies, and whom it would favour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from harness.config.spec import EvalSpec
from harness.data.dataset import Capabilities
from harness.errors import UserError, unknown
from metrics import MetricError
from metrics.extractors.registry import extractor_modality
from metrics.files.hashing import file_sha256
from metrics.suite import METRICS, check_classes

SCRIPT = "torchscript"
NAMED_ALONE = {
    "fid": ("fd", "inception"),
    "fid_infinity": ("fd_infinity", "inception"),
    "sfid": ("sfid", "inception"),
    "is": ("is", "inception"),
    "is_shuffled": ("is_shuffled", "inception"),
    "cmmd": ("cmmd", "clip-vit-l-336"),
}
"""Names that belong to one network: (value, extractor)."""
OVER_ANY = tuple(value for metric in METRICS for value in metric.values if value != "sfid")
"""Values that any network of images gives, as `<value>:<extractor>`."""
SAME_NETWORK = {
    **{
        f"dinov2-{size[0]}": f"timm:vit_{size}_patch14_dinov2" for size in ("small", "base", "large", "giant")
    },
    "clip-vit-l-336": "open_clip:ViT-L-14-336.openai",
}
"""Extractors of a name of their own, as an encoder would be called."""

TRUTHS = {
    "dynamics": ("motion", "whose motion is known, as moving_digits"),
    "sync": ("sound_frames", "in which impacts are seen and heard, as bounce"),
    "cer:reader": ("words", "of words in letters, as words"),
    "cer:tesseract": ("words", "of words in letters, as words"),
    "agreement:local": ("", "of videos"),
    "drift:local": ("", "of videos"),
}
"""Metrics of samples themselves (harness/evaluation/reference_free.py): name -> what a data set must tell of itself, and which data those are."""
LEAST = {"drift:local": 3}
"""Samples without which one of them has no value, where one is not enough."""


class Yardstick(NamedTuple):
    """One entry of `eval.metrics`."""

    name: str
    value: str
    """What is computed, as metrics.suite calls it."""
    extractor: str
    """Over whose features, as metrics.extractors.registry calls it."""


def yardstick(name: str) -> Yardstick:
    """What a metric's name means; raises `UserError`, with the nearest match, for one that means nothing."""
    if name in NAMED_ALONE:
        return Yardstick(name, *NAMED_ALONE[name])
    value, _, extractor = name.partition(":")
    if value not in OVER_ANY:
        over = [f"{known}:{extractor or '<extractor>'}" for known in OVER_ANY]
        raise unknown("metric in eval.metrics", name, [*NAMED_ALONE, *TRUTHS, *over])
    if not extractor:
        raise UserError(
            f"metric '{name}' in eval.metrics names no network: write {value}:<extractor>, as {value}:local"
        )
    reads_of(name, extractor)
    try:
        check_classes(value, extractor)
    except MetricError as error:
        raise UserError(f"eval.metrics '{name}': {error}") from error
    return Yardstick(name, value, extractor)


def addressed(spec: EvalSpec) -> EvalSpec:
    """The spec with every `torchscript:<file>` named by its content, `torchscript@<8 digits of its sha256>`; the file itself goes
    to `eval.weights`, which is not hashed: the same file at another place is the same run.

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
    """The extractor's name as metrics.extractors.registry takes it, its weights file where one is given, and what the file's sha256 begins
    with. Raises `UserError` for a TorchScript file of which nothing tells where it lies."""
    if not extractor.startswith(f"{SCRIPT}@"):
        return extractor, weights.get(extractor), ""
    key, mark, options = extractor.partition("?")
    if key not in weights:
        raise UserError(
            f"metric network '{key}': eval.weights does not tell its file; add --set eval.weights.{key}=FILE"
        )
    return f"{SCRIPT}:{weights[key]}{mark}{options}", None, key.removeprefix(f"{SCRIPT}@")


def check_truth(name: str, known: Any, modality: str) -> None:
    """Raise `UserError` where a data set, or its class, cannot be measured so."""
    told, which = TRUTHS[name]
    able = Capabilities(known)
    whole = able.modality == modality
    if (whole and able.has(told)) if told else modality in ("video", "joint"):
        return
    raise UserError(f"eval.metrics '{name}' is of data {which}; these are not: leave it out")


def is_same_network(extractor: str, encoder: str) -> bool:
    """Whether an extractor and an alignment encoder, by name, are one network (a tag of weights that is left out fits any).

    >>> is_same_network("dinov2-s", "cached:timm:vit_small_patch14_dinov2.lvd142m"), is_same_network("local", "local:small")
    (True, False)
    """
    (first, its_tag), (second, other_tag) = _network(extractor), _network(encoder)
    return first == second and (its_tag == other_tag or not its_tag or not other_tag)


def favoured(metrics: Iterable[str], encoders: Iterable[str]) -> list[str]:
    """The metrics, of these, whose network is one of these encoders."""
    known = list(encoders)
    return [
        name for name in metrics if any(is_same_network(_extractor_of(name), encoder) for encoder in known)
    ]


def check_impartial(metrics: Iterable[str], found: Iterable[str], where: str) -> None:
    """Raise `UserError` where an encoder that an arm aligns to is the network of every metric."""
    asked, rewarded = list(metrics), set(found)
    if asked and rewarded.issuperset(asked):
        raise UserError(
            f"{where}: eval.metrics has '{asked[0]}' and nothing else to go by, but a method aligns to that very encoder, so the "
            "metric would reward the alignment itself; measure with another extractor, as 'fd:local', alone or beside it"
        )


def reads_of(metric: str, extractor: str) -> str:
    """What the network of a metric reads: `image`, `video` or `audio`; raises `UserError` for an unknown one."""
    if extractor.startswith(f"{SCRIPT}@"):
        return "image"
    try:
        return extractor_modality(extractor)
    except MetricError as error:
        raise UserError(f"eval.metrics '{metric}': {error}") from error


def _extractor_of(name: str) -> str:
    """Without a check: of any name."""
    return NAMED_ALONE[name][1] if name in NAMED_ALONE else name.partition(":")[2]


def _network(name: str) -> tuple[str, str]:
    """`family:model` and the tag of its weights."""
    name = name.removeprefix("cached:")
    model, _, tag = SAME_NETWORK.get(name, name).partition(".")
    return model, tag


def _by_content(text: str, metric: str) -> tuple[str, str]:
    """`<file>?options` -> the name by content with its options in order, and the file."""
    file, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    try:
        sha256 = file_sha256(Path(file), expected=options.pop("sha256", ""))
    except MetricError as error:
        raise UserError(f"eval.metrics '{metric}': {error}") from error
    rest = urlencode(sorted(options.items()))
    return f"{SCRIPT}@{sha256[:8]}" + (f"?{rest}" if rest else ""), file
