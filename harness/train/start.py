"""The start of a run: what must equal its first start, and what the record stores about this one."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.assembly.build import sampling_rule
from harness.assembly.given import gives_tokens
from harness.config.encoder_fields import encoder_weights_field
from harness.config.spec import RunSpec
from harness.data.dataset import Capabilities, Dataset
from harness.data.found import found_in
from harness.data.open import Split
from harness.data.robot import FILE as LAYOUT
from harness.encoders.base import described
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.kept_features import ignore
from harness.files.files import write_atomic
from harness.records.flatten import flatten
from harness.records.record import Record
from harness.runtime.distributed import World
from harness.runtime.environment import describe, package_version
from harness.text.captions import RunCaptions
from harness.train.journal import Progress
from harness.train.state import Run

CODEC, ENCODER, NETWORK, TEXT_ENCODER = "codec", "encoder", "metric network", "text encoder"


def threads_of_run(spec: RunSpec, record: Record, progress: Progress) -> int:
    """Return the thread count of a run's first start, on which its bits depend; for a new run, that of the
    spec."""
    begun = next((start["threads"] for start in record.environment if "threads" in start), None)
    if begun is not None and spec.runtime.threads not in (0, begun):
        progress.note(
            f"the run started with {begun} threads and keeps them, so that its results stay bitwise equal"
        )
    return begun or spec.runtime.threads


def check_same_data(record: Record, fingerprint: str) -> None:
    """Raise `UserError` if a run started with other data."""
    starts = (start for start in record.environment if "data_fingerprint" in start)
    begun = next((start["data_fingerprint"] for start in starts), fingerprint)
    if begun != fingerprint:
        raise UserError(
            f"the data have changed since {record.path} started (fingerprint {begun}, now {fingerprint}); "
            "restore the original data, or use another --out"
        )


def check_same_weights(record: Record, found: Mapping[str, str], note: Callable[[str], None]) -> None:
    """Raise `UserError` if a run started with other weights.

    `found` holds the sha256 of weights by what they belong to, as `weights_at_start` names it. Weights that
    no earlier start names are accepted. Networks that were trained on the data on another machine differ in
    their last bits, so a note takes the place of the error.
    """
    begun = weights_at_start(record)
    for what, sha256 in found.items():
        if begun.get(what, sha256) == sha256:
            continue
        changed = f"the weights of the {what} have changed since {record.path} started"
        if _is_trained_on_data(what) and _is_elsewhere(record):
            note(f"{changed} on another machine, because they are trained on the data; bits will differ")
            continue
        raise UserError(
            f"{changed} (sha256 {begun[what]}, now {sha256}); {_restore(what, record)}, or use another --out"
        )


def _is_trained_on_data(what: str) -> bool:
    return "'local" in what or ":local" in what


def _is_elsewhere(record: Record) -> bool:
    """Return whether a run began on another machine, another kind of CPU, or with another torch."""
    import torch

    here = (platform.node(), torch.backends.cpu.get_cpu_capability(), package_version("torch"))
    begun = next((start for start in record.environment if "host" in start), {})
    packages = begun.get("packages", {})
    return here != (begun.get("host"), begun.get("cpu_capability"), packages.get("torch"))


def weights_at_start(record: Record) -> dict[str, str]:
    """Return the sha256 of the weights that a run began with, by what they belong to.

    Those of a network that was added later are from the first start or evaluation that names it.
    """
    found: dict[str, str] = {}
    for start in record.environment:
        protocol = start.get("evaluation", {}).get("protocol", {})
        encoders = {encoder["name"]: encoder["sha256"] for encoder in start.get("encoders", ())}
        networks = {name: network["sha256"] for name, network in protocol.get("extractors", {}).items()}
        codec = {CODEC: protocol["codec"]} if "codec" in protocol else {}
        text = text_weights(start.get("text"))
        found = codec | encoder_weights(encoders) | text | network_weights(networks) | found
    for about in record.protocols.values():
        extractors = about.get("protocol", {}).get("extractors", {})
        found = network_weights({name: network["sha256"] for name, network in extractors.items()}) | found
    return found


def encoder_weights(sha256: Mapping[str, str]) -> dict[str, str]:
    """Return the weights of encoders, given by name, under the names of `weights_at_start`."""
    return {f"{ENCODER} '{name}'": value for name, value in sha256.items()}


# Any: JSON.
def text_weights(about: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the weights of a text encoder, from what a run records about its captions, likewise."""
    return {f"{TEXT_ENCODER} '{about['name']}'": about["sha256"]} if about else {}


def network_weights(sha256: Mapping[str, str]) -> dict[str, str]:
    """Return the weights of the networks of metrics, and those of the codec, likewise."""
    return {CODEC if name == CODEC else f"{NETWORK} '{name}'": value for name, value in sha256.items()}


def _restore(what: str, record: Record) -> str:
    """Return what to do about changed weights of a run."""
    if _is_trained_on_data(what):
        return "they are trained on the data: set FLOWRACE_CACHE to the cache that holds them"
    kind, _, name = what.removesuffix("'").partition(" '")
    if kind == ENCODER:
        field = encoder_weights_field(flatten(record.spec), name)
    else:
        field = {CODEC: "data.codec_weights", TEXT_ENCODER: "text.weights"}.get(kind, "eval.weights")
    return f"set {field} to the original file"


def open_evaluator(
    spec: RunSpec,
    dataset: Dataset,
    sides: Split,
    world: World,
    begun: Record,
    progress: Progress,
    captions: RunCaptions | None,
) -> Evaluator:
    """Return the evaluator of a run; raises `UserError` if a network has other weights than at its start."""
    note = progress.note if world.main else ignore
    evaluator = Evaluator(
        spec.eval,
        dataset,
        sides.train,
        world.device,
        sides.held_out,
        world,
        note=note,
        check=lambda found: check_same_weights(begun, network_weights(found), note),
        captions=captions,
        giving=gives_tokens(spec.data, dataset.modality),
        rule=sampling_rule(spec, dataset),
    )
    if evaluator.undecoded:
        note(f"no samples are drawn: {evaluator.undecoded}")
    return evaluator


def write_robot_layout(path: Path, dataset: Dataset) -> None:
    """Write the layout of a robot's samples, which its policy needs, into the folder of a run."""
    layout = Capabilities(dataset).robot
    if layout is not None and dataset.modality == "robot":
        write_atomic(path / LAYOUT, (layout.model_dump_json(indent=1) + "\n").encode())


def describe_start(
    run: Run, world: World, dataset: Dataset, sides: Split, evaluator: Evaluator
) -> dict[str, Any]:
    """Return the entry of this start in environment.json."""
    about: dict[str, Any] = {
        "data_fingerprint": dataset.fingerprint,
        "data": found_in(dataset).row(),
        "train_samples": len(sides.train),
        "params": sum(parameter.numel() for parameter in run.model.parameters()),
        "evaluation": evaluator.described(run.encoders),
    }
    if run.encoders:
        about["encoders"] = [described(encoder) for encoder in run.encoders]
    if run.captions is not None:
        about["text"] = run.captions.about()
    return describe(world.device, world.size) | about
