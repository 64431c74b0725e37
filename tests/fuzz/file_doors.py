"""The doors of weights, statistics, specs, studies, claims, logs and records."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save

from harness.assembly.resolve import load_spec
from harness.backbone.sizes import Size
from harness.config.data_spec import DataSpec
from harness.data.open import open_dataset
from harness.encoders.base import Choice, open_encoder
from harness.environments.base import open_task
from harness.environments.demonstrations import episode_file, write_demonstrations
from harness.environments.episode_file import episode_facts
from harness.environments.play import play
from harness.errors import UserError
from harness.exchange.reading import ANCHOR, read_source
from harness.latents.codec import open_codec
from harness.latents.rae_decoder import initial_decoder
from harness.latents.rae_folder import CLASS, RaeConfig
from harness.latents.rae_training import TrainedRae
from harness.latents.rae_training import save as save_rae
from harness.records import checkpoint
from harness.records.checkpoint_files import checkpoints, precision_of
from harness.records.integrity import misfits
from harness.records.record import Record
from harness.records.rollouts import Conditions, Episode, recording
from harness.rollouts.rollout import replay_acting
from metrics.distances.frechet import moments_of
from metrics.extractors.torchscript import parse_options
from metrics.files.reference_statistics import read_adm, read_statistics, save_statistics
from metrics.value import MetricError
from reports.analysis.success import compare, read_arm
from reports.logs.log_map import LogMap, StepUnit
from reports.logs.read import read_logs_of
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study
from tests.fuzz.door import Door, Files, command
from tests.reports.audits import CLAIM, claim_file, rows, write_csv
from tests.reports.logged import BATCH, KINDS, PLAIN
from tests.reports.synthetic import power_law, write_run
from tests.support.runs import tiny

RULES = {"plain": LogMap(line=PLAIN), "EDM2": LogMap(steps=StepUnit(batch_size=BATCH))}


def written(write: Callable[[Path], object]) -> Files:
    """Return the files that a function writes into a folder."""
    with tempfile.TemporaryDirectory(prefix="seeds") as name:
        folder = Path(name)
        write(folder)
        return {
            str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()
        }


# Weights and statistics.
WEIGHTS = {f"blocks.{n}.mlp.fc1.bias": torch.zeros(4) for n in range(4)} | {ANCHOR: torch.zeros(4, 1, 2, 2)}


def pt() -> Files:
    content = io.BytesIO()
    torch.save({"ema": WEIGHTS, "steps": 12}, content)
    return {"weights.pt": content.getvalue()}


def from_weights(name: str, folder: Path) -> Iterable[float]:
    # `flowrace import` refuses weights that are not finite, by a forward pass.
    return [float(len(read_source(folder / name).tensors))]


def from_checkpoint(folder: Path) -> Iterable[float]:
    (file,) = checkpoints(folder)
    precision_of(file)
    return [float(len(checkpoint.load(file).tensors))]


def write_checkpoint(folder: Path) -> None:
    tensors = {"model.a": torch.arange(6.0).reshape(2, 3), "ema.a": torch.ones(2)}
    checkpoint.save(folder / "step-00000004.safetensors", tensors, {"run": "0123456789ab", "step": "4"})


MOMENTS = moments_of(np.random.default_rng(0).normal(size=(20, 3)))


def write_rae(folder: Path) -> None:
    size, shape = Size(1, 8, 2), (32, 4, 4)
    encoder = open_encoder(
        Choice("random:tiny"), open_dataset(DataSpec()), grid=(4, 4), held_out=0.1, device=torch.device("cpu")
    )
    named = {"name": encoder.name, "sha256": encoder.sha256}
    fields = {"channels": 32, "grid": 4, "pixels": (1, 8, 8), "classes": 10, "decoder": "1x8x2"}
    config = RaeConfig.model_validate({"_class_name": CLASS, "encoder": named, **fields})
    decoder = initial_decoder(size, 32, 4, (1, 8, 8), seed=0).state_dict()
    tensors = {f"decoder.{name}": value for name, value in decoder.items()}
    statistics = {"latents.mean": torch.zeros(shape), "latents.std": torch.ones(shape)}
    save_rae(TrainedRae(config, tensors | statistics, 0.0), folder, "")


def from_rae(folder: Path) -> Iterable[float]:
    return [float(size) for size in open_codec("rae", str(folder), torch.device("cpu")).shape((1, 8, 8))]


def write_statistics(folder: Path) -> None:
    save_statistics(folder / "a.safetensors", MOMENTS, None, {"extractor": "means"})
    np.savez(folder / "b.npz", mu=MOMENTS.mean, sigma=MOMENTS.covariance)


def from_statistics(folder: Path) -> Iterable[float]:
    try:
        found = [read_statistics(folder / "a.safetensors"), read_adm(folder / "b.npz")]
    except MetricError as error:
        raise UserError(str(error)) from error
    return [float(x) for one in found for x in (*one.features.mean, *one.features.covariance.ravel())]


def from_options(folder: Path) -> Iterable[float]:
    query = (folder / "options.txt").read_bytes().decode(errors="surrogateescape")
    try:
        options = parse_options(query)
    except MetricError as error:
        raise UserError(str(error)) from error
    return [float(number) for number in (options.size, options.dim) if number]


# Specs, studies and claims.
def from_spec(folder: Path) -> Iterable[float]:
    spec = load_spec(str(folder / "spec.toml"))
    assert len(spec.id) == 12 and load_spec(str(folder / "spec.toml")).to_toml() == spec.to_toml()
    return [spec.train.learning_rate, float(spec.train.steps)]


def from_settings(folder: Path) -> Iterable[float]:
    text = (folder / "settings.txt").read_bytes().decode(errors="surrogateescape")
    return [load_spec("digits", text.split("\n")).train.learning_rate]


SETTINGS = b'train.steps=12\ntrain.learning_rate=1e-3\nmethod.name=repa\neval.metrics=["fd:local"]\nseed=3'
STUDY = b"""name = "two"
base = "digits"
baseline = "flow"
[axes]
seed = [0, 1]
"method.name" = ["flow", "repa"]
[[exclude]]
reason = "no time"
where = { "method.name" = "repa", seed = 1 }
[set]
"train.steps" = 12
[target]
metric = "fd:local"
value = 8.0
[labels]
repa = "REPA"
"""


def from_study(folder: Path) -> Iterable[float]:
    plan = make_plan(load_study(str(folder / "study.toml")), folder)
    return [float(run.spec.seed) for run in plan.runs]


def write_claim(folder: Path) -> None:
    claim_file(folder)
    speeds = {CLAIM["baseline"]: 1.0, CLAIM["candidate"]: 2.2}
    write_csv(folder / "curves.csv", rows(speeds, seeds=range(3), grid=range(50_000, 400_001, 50_000)))


def from_claim(folder: Path) -> Iterable[float]:
    return command("audit", folder / "claim.toml", folder / "curves.csv", "--json")


@cache
def sources_of(kind: str) -> tuple[str, ...]:
    """Return the names that a kind of log is given by."""
    with tempfile.TemporaryDirectory(prefix="seeds") as name:
        return tuple(str(file.relative_to(name)) for file in KINDS[kind](Path(name)))


def from_logs(kind: str, folder: Path) -> Iterable[float]:
    found = read_logs_of([folder / source for source in sources_of(kind)], RULES.get(kind))
    # Values of a curve that diverged are not finite, and stay so.
    return [float(point.step) for curve in found.curves for point in curve.points]


# Records.
def write_study(folder: Path) -> None:
    curves = {"flow": power_law(1000.0, 0.5), "repa": power_law(700.0, 0.5)}
    runs = []
    for method, curve in curves.items():
        for seed in (0, 1, 2):
            path = folder / f"{method}{seed}"
            write_run(path, method, seed, metric=curve, grid=range(200, 2001, 600))
            (path / "lock").unlink(missing_ok=True)
            runs.append({"id": path.name, "cell": {"method.name": method, "seed": seed}, "steps": 2000})
    (folder / "plan.json").write_text(json.dumps({"runs": runs, "excluded": []}))
    (folder / "study.toml").write_bytes(STUDY)


def write_chained(folder: Path) -> None:
    """Write the chain of a record, next to the events and the spec that it covers."""
    write_run(folder, "flow", 0, grid=range(200, 2001, 600))
    (folder / "lock").unlink()


def from_chain(folder: Path) -> Iterable[float]:
    return [float(len(fault)) for fault in misfits(Record(folder))]


def from_report(folder: Path) -> Iterable[float]:
    """Write the report. Its figures, which take nearly all the time, are drawn for a tenth of the cases."""
    content = b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())
    draws = zlib.crc32(content) % 10 == 0
    without = (
        contextlib.nullcontext() if draws else patch("reports.figures.svg.inline", return_value="<svg/>")
    )
    with without:
        return command("report", folder, "-o", folder.parent / "page.html", "--json")


def write_rollout(folder: Path) -> None:
    about = Conditions("open-and-place", "1", ("opened", "placed", "both"), 120, "expert", 100_000, 0, 50)
    with recording(folder, about) as record:
        for seed in (100_000, 100_001):
            stages = {"opened": 14, "placed": None, "both": None}
            record.add(Episode(seed, False, 120, stages, 0.5, "0d8c62308a4eb94e"))


def from_rollout(folder: Path) -> Iterable[float]:
    found = compare(read_arm([folder]), read_arm([folder]))
    return [number for one in found for number in (one.first.mean, one.difference.mean)]


@cache
def write_demos() -> Files:
    return written(lambda folder: write_demonstrations(open_task("open-and-place:open"), 1, folder))


def from_demos(folder: Path) -> Iterable[float]:
    """Replay the recorded actions, and read the facts that a continued set needs."""
    environments = open_task("open-and-place:open")
    acting = replay_acting(environments.task, folder)
    played = [*play(environments, range(1), acting.actors(range(1)))]
    facts = episode_facts(episode_file(folder, 0))
    return [*(one.largest_reward for one in played), facts["length"]]


def from_status(folder: Path) -> Iterable[float]:
    return command("status", folder, "--json")


def from_export(folder: Path) -> Iterable[float]:
    return command("export", folder)


FILES = (
    Door("weights.pt", pt, partial(from_weights, "weights.pt")),
    Door(
        "weights.safetensors",
        lambda: {"a.safetensors": save(WEIGHTS)},
        partial(from_weights, "a.safetensors"),
    ),
    Door("checkpoint", lambda: written(write_checkpoint), from_checkpoint),
    Door("codec rae", lambda: written(write_rae), from_rae, True, cases=5, only=("config.json",)),
    Door("statistics", lambda: written(write_statistics), from_statistics),
    Door("torchscript options", lambda: {"options.txt": b"size=96&dim=12&range=unit"}, from_options, True),
    Door("spec", lambda: {"spec.toml": tiny("method.name=repa").to_toml().encode()}, from_spec, True),
    Door("settings", lambda: {"settings.txt": SETTINGS}, from_settings, True),
    Door("study", lambda: {"study.toml": STUDY}, from_study, True),
    Door("claim", lambda: written(write_claim), from_claim, True, cases=10),
    Door("chain of a record", lambda: written(write_chained), from_chain, True),
    Door("report of a study", lambda: written(write_study), from_report, True, cases=6),
    Door("status of a study", lambda: written(write_study), from_status, True, cases=10),
    Door("export of a study", lambda: written(write_study), from_export, True, cases=6),
    Door("rollout", lambda: written(write_rollout), from_rollout, True, only=(".json", ".jsonl")),
    Door("replayed demonstrations", write_demos, from_demos, cases=20, only=(".parquet", "recipe.json")),
)
LOGS = tuple(
    Door(f"log of {kind}", partial(written, write), partial(from_logs, kind), kind != "events", cases=10)
    for kind, write in KINDS.items()
)
