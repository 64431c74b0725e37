"""Metric checks, made before anything is trained or measured.

`check_metrics` is called when a spec is resolved, hence by every command and plan, and by the evaluator,
which also knows the numbers of samples. `check_arms` compares the arms of a study.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.acting.network_policy import DETERMINISTIC
from harness.config.evaluation_spec import EvalSpec
from harness.data.dataset import Capabilities
from harness.data.parts import KINDS as PARTS
from harness.environments.base import check_task
from harness.errors import UserError
from harness.evaluation.metric_names import MetricSpec, favoured, input_kind, metric_spec
from harness.evaluation.metric_table import CAPTION_SCORES, HELD_OUT_LOSS, ReferenceFree
from harness.records.evaluations import SUCCESS
from metrics import MetricError
from metrics.extractors.base import Extractor
from metrics.suite import RESERVED, check_classes, metric_of

KINDS = {
    "image": ("image",),
    "video": ("video",),
    "audio": ("image",),
    "joint": ("video", "image"),
    "robot": (),
}
"""Modality of data -> the kinds of network that can measure it."""
DRAWN = {
    "image": "images",
    "video": "videos",
    "audio": "spectrograms",
    "joint": "videos with spectrograms",
    "robot": "actions",
}
SUITABLE = {
    "video": "video:local, or video:<image extractor>",
    "audio": "local, or any image extractor, which reads the spectrogram",
    "joint": "video:local for the video and local for the sound",
    "robot": "success@TASK, for example success@open-and-place, or loss:held_out",
    "image": "local, or any image extractor",
}
MOST = 2**62
"""More samples than any data set has, for checks made before the number is known."""


def check_metrics(
    spec: EvalSpec,
    data: object,
    modality: str,
    *,
    samples: int = MOST,
    real: int = MOST,
    held_out: int = MOST,
    captioned: bool = True,
    encoders: Iterable[str] = (),
    where: str = "spec",
) -> list[MetricSpec]:
    """Parse `eval.metrics` and check each entry.

    `data` is a data set, or its class if it is not opened. `samples`, `real` and `held_out` are the
    numbers of generated, of real and of held-out samples, if known. `captioned` is true for a run that is
    conditioned on captions, or if that is not known. `encoders` are those that a method aligns to.

    Raises `UserError` for an unknown name or network, a network of another modality, a metric that the data
    or the network do not support, too few samples, and a list in which an encoder computes every metric.
    """
    check_impartial(spec.metrics, favoured(spec.metrics, encoders), where)
    found = [metric_spec(name) for name in spec.metrics]
    for metric in found:
        if metric.reference_free:
            _check_data(metric, data, modality)
            _check_captions(metric, captioned)
        if metric.compares_features:
            _check_network(metric, modality)
        if metric.name.startswith(SUCCESS):
            _check_success(metric.name, modality, spec.sampler)
        check_enough(metric, samples, real)
    if HELD_OUT_LOSS in spec.metrics and not held_out:
        raise UserError(
            f"eval.metrics '{HELD_OUT_LOSS}' needs held-out samples, but there are none; raise "
            "data.held_out, or remove the metric"
        )
    return found


def check_undecoded(metrics: Iterable[str], undecoded: str, where: str) -> None:
    """Raise `UserError` if a metric reads decoded samples, which a run does not have for this reason."""
    for name in metrics:
        if undecoded and name != HELD_OUT_LOSS:
            raise UserError(
                f"{where}: eval.metrics '{name}' reads decoded samples, but {undecoded}, or measure without "
                f"decoding: --set 'eval.metrics=[\"{HELD_OUT_LOSS}\"]'"
            )


def check_arms(arms: Iterable[EvalSpec], encoders: Iterable[str], where: str) -> None:
    """Check the metrics of a study's arms, each of which resolved to a valid spec.

    Raises `UserError` for too few samples, and if every metric of an arm is computed by an encoder that some
    arm aligns to.
    """
    known = list(encoders)
    for spec in arms:
        check_impartial(spec.metrics, favoured(spec.metrics, known), where)
        for name in spec.metrics:
            check_enough(metric_spec(name), spec.samples, MOST)


def check_impartial(metrics: Iterable[str], rewarded: Iterable[str], where: str) -> None:
    """Raise `UserError` if all `metrics` are among the `rewarded`: those computed by an alignment encoder."""
    names = list(metrics)
    if names and set(rewarded).issuperset(names):
        raise UserError(
            f"{where}: '{names[0]}' in eval.metrics, and every other metric there, is computed by an encoder "
            "that a method aligns to, so it would reward the alignment itself; add another extractor, for "
            "example 'fd:local'"
        )


def check_enough(metric: MetricSpec, samples: int, real: int) -> None:
    """Raise `UserError` if there are fewer generated or real samples than a metric needs."""
    compared = metric_of(metric.value) if metric.compares_features else None
    subset = compared.settings.get("subset_size", 0) if compared else 0
    if min(samples, real) < subset:
        raise UserError(
            f"metric '{metric.name}' draws subsets of {subset}, but one side has {min(samples, real)} "
            "samples: raise eval.samples, use more data, or remove the metric"
        )
    fewest = (compared or metric.reference_free or ReferenceFree("")).least
    if samples < fewest:
        raise UserError(
            f"metric '{metric.name}' needs at least {fewest} samples, but eval.samples = {samples}: raise "
            "it, or remove the metric"
        )


def check_extractor(metric: MetricSpec, extract: Extractor) -> None:
    """Raise `UserError` if the loaded network lacks the outputs, or the weights, that a metric needs."""
    needed = metric_of(metric.value)
    missing = {needed.real, needed.fake} - {"", "rows", "features", *extract.beside}
    if missing:
        raise UserError(
            f"metric '{metric.name}' needs {missing.pop()}, which the network '{extract.name}' does not "
            f"give; it has features{''.join(f', {name}' for name in extract.beside)}"
        )
    if metric.name in RESERVED and extract.name != RESERVED[metric.name].extractor:
        raise UserError(
            f"the name '{metric.name}' is reserved for the original weights; with '{extract.name}' write "
            f"{metric.value}:{extract.name}"
        )


def _check_data(metric: MetricSpec, data: object, modality: str) -> None:
    needs = metric.reference_free
    assert needs is not None
    if needs.states:
        if needs.states in Capabilities(data).states and _generates(needs.part, modality):
            return
    elif needs.attribute:
        # A metric of all parts is undefined if the run generates only some of them.
        capabilities = Capabilities(data)
        readable = metric.value not in CAPTION_SCORES or modality == "image"
        # Whether files have captions is known when they are read.
        declared = capabilities.has(needs.attribute) or (
            needs.attribute == "captions" and capabilities.captioned
        )
        if capabilities.modality == modality and declared and readable:
            return
    elif modality in ("video", "joint"):
        return
    raise UserError(
        f"eval.metrics '{metric.name}' needs data {needs.data}, which this data set does not have; remove it"
    )


def _generates(part: str, modality: str) -> bool:
    """Return whether a run on data of a modality generates a part; the empty one stands for all parts."""
    return part in ("", modality, *PARTS.get(modality, ()))


def _check_captions(metric: MetricSpec, captioned: bool) -> None:
    if metric.reference_free and metric.reference_free.captioned and not captioned:
        raise UserError(
            f"eval.metrics '{metric.name}' compares samples with their captions, but this run is conditioned "
            "on class labels; set text.encoder, for example minilm, or remove the metric"
        )


def _check_success(name: str, modality: str, sampler: str) -> None:
    if modality != "robot":
        raise UserError(
            f"eval.metrics '{name}' needs a run that generates actions, but this one generates "
            f"{DRAWN[modality]}; use data demos with data.parts.action.weight above 0, as flowrace finetune "
            "does, or remove it"
        )
    check_task(name.removeprefix(SUCCESS))
    if sampler not in DETERMINISTIC:
        raise UserError(
            f"eval.metrics '{name}': eval.sampler = {sampler} draws further noise, so equal noise would give "
            f"other actions; --set eval.sampler={DETERMINISTIC[0]}"
        )


def _check_network(metric: MetricSpec, modality: str) -> None:
    kind = input_kind(metric)
    try:
        check_classes(metric.value, metric.extractor)
    except MetricError as error:
        raise UserError(f"eval.metrics '{metric.name}': {error}") from error
    if kind not in KINDS[modality]:
        expected = {"audio": "recordings", "image": "images"}.get(kind, kind)
        raise UserError(
            f"eval.metrics '{metric.name}': extractor '{metric.extractor}' expects {expected}, but this run "
            f"generates {DRAWN[modality]}; use {SUITABLE[modality]}"
        )
