"""Weights that planned runs need and that are not on this machine: of (text) encoders, extractors, codecs.

Data of a plan that was made without them are missing too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.spec import RunSpec
from harness.errors import ListedError, UserError
from harness.records.checkpoint_files import CHECKPOINTS, check_exact, checkpoints, weights_files
from harness.records.record import Record
from sweeps.plan.plan import PlannedRun
from sweeps.plan.run_state import read_state, read_step

SHOWN = 3
"""Number of runs that a line lists by label."""


@dataclass(frozen=True)
class MissingWeights:
    """A network whose weights are missing, and the unfinished runs that need it."""

    kind: str
    """data, encoder, text encoder, extractor or codec."""
    name: str
    reason: str
    """The reason, and where to get the weights."""
    type: str
    """The options to add to the command."""
    runs: tuple[str, ...]
    """Labels of the runs."""


class _Network(NamedTuple):
    """A network that a run needs; two runs with equal ones share the check."""

    kind: str
    name: str
    options: str
    """The options that name its weights."""
    where: str
    """The location of its weights in the spec."""


def find_missing(runs: Sequence[PlannedRun], directory: Path) -> list[MissingWeights]:
    """Return the missing weights of unfinished runs. Nothing is downloaded or loaded."""
    reasons: dict[_Network, str] = {}
    needed: dict[_Network, list[str]] = {}
    for run in runs:
        if read_state(run, directory).status == "done":
            continue
        for network, check in _networks(run.spec):
            if network not in reasons:
                reasons[network] = _reason(check)
            if reasons[network]:
                needed.setdefault(network, []).append(run.label)
    return [
        MissingWeights(network.kind, network.name, reasons[network], network.options, tuple(labels))
        for network, labels in needed.items()
    ]


def check_weights(runs: Sequence[PlannedRun], directory: Path) -> None:
    """Raise `UserError` if an unfinished run lacks weights, before anything starts.

    Weights of a first stage that is still to be trained are not missing.
    """
    for run in runs:
        _check_start(run, directory)
    if missing := find_missing(runs, directory):
        lines = [f"  {line}" for line in missing_lines([asdict(one) for one in missing])]
        raise ListedError("missing weights, so nothing was started:", lines)


def _check_start(run: PlannedRun, directory: Path) -> None:
    """Raise `UserError` for a pretrained run that was trained past the step from which a new run starts."""
    start = run.spec.start
    if not (start.run and start.file) or checkpoints(directory / run.id / CHECKPOINTS):
        return
    first = Record(Path(start.file))
    if first.status == "missing" or read_state(run, directory).is_trained:
        return
    kept, step = weights_files(first.path), read_step(first.path)
    passed = step > start.run_step or (step == start.run_step and first.status == "done")
    if not passed:
        return
    if start.run_step in kept:
        check_exact(kept[start.run_step], f"run {start.run} at step {start.run_step}")
        return
    raise UserError(
        f"{run.label} starts from {first.path} at step {start.run_step}, but that run is at step {step} and "
        f"kept weights of steps {', '.join(map(str, kept)) or 'none'} only; give one of these with --set "
        "pretraining.train.steps=STEP, or train the first stage again in another folder (--out)"
    )


# Any: the fields of a `MissingWeights` as JSON data.
def missing_lines(missing: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each network, with its runs, the reason and what to type."""
    return [
        f"{one['kind']} {one['name']} ({_labels(one['runs'])}): {one['reason']}; type: {one['type']}"
        for one in missing
    ]


def _labels(runs: Sequence[str]) -> str:
    """Return the runs in words.

    >>> _labels(["a"]), _labels(["a", "b", "c", "d"])
    ('1 run: a', '4 runs: a, b, c, ...')
    """
    more = ", ..." if len(runs) > SHOWN else ""
    return f"{len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(runs[:SHOWN])}{more}"


def _networks(spec: RunSpec) -> Iterator[tuple[_Network, Callable[[], object]]]:
    """Yield every network of a run, with its check."""
    from harness.data.disk.survey import data_path
    from harness.encoders.base import check_weights as check_encoder
    from harness.evaluation.extractors import check_weights as check_extractor
    from harness.evaluation.metric_names import metric_spec
    from harness.latents.dataset import EXPECTED as LATENTS
    from harness.latents.dataset import check_codec
    from harness.text.base import check_text_weights

    encoders = [(n, choice) for n, term in spec.method.terms.items() for choice in term.needs().encoders]
    for method, choice in encoders:
        setting = f"--set methods.{method}.encoder"
        options = f"{setting}.weights=FILE or {setting}.download=true"
        yield _Network("encoder", choice.name, options, choice.weights), partial(check_encoder, choice)
    if spec.text.encoder:
        options = "--set text.weights=PATH or --set text.download=true"
        network = _Network("text encoder", spec.text.encoder, options, spec.text.weights)
        yield network, partial(check_text_weights, spec.text)
    for metric in spec.eval.metrics:
        if name := metric_spec(metric).extractor:
            options = f'--set \'eval.weights={{"{name}"="FILE"}}\''
            network = _Network("extractor", name, options, spec.eval.weights.get(name, ""))
            yield network, partial(check_extractor, name, spec.eval.weights)
    if spec.data.name == "latents" and not spec.data.root:
        network = _Network("data", spec.data.name, "--set data.root=FOLDER", "")
        yield network, partial(data_path, spec.data, LATENTS)
    if spec.data.name == "latents":
        name, where = spec.data.codec or "of the latents", f"{spec.data.root} {spec.data.codec_weights}"
        network = _Network("codec", name, "--set data.codec_weights=FOLDER", where)
        yield network, partial(check_codec, spec.data)


def _reason(check: Callable[[], object]) -> str:
    try:
        check()
    except UserError as error:
        return str(error)
    return ""
