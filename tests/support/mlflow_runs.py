"""Runs written without training, and their counterparts in an MLflow store."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from harness.records.record import Record
from harness.records.record_writer import RecordWriter

STARTED = 1_700_000_000_000


SPEC = (
    'seed = 1\n[method]\nname = "repa"\ncoefficient = 0.5\n[train]\nbetas = [0.9, 0.999]\n[data]\nroot = ""\n'
)


def train(step: int, loss: float = 0.5) -> dict[str, Any]:
    seconds = {"student": 0.25 * step, "ema": 0.001 * step}
    numbers = {"loss": loss, "losses": {"flow": loss}, "grad_norm": 1.0, "learning_rate": 1e-3}
    return {
        "kind": "train",
        "step": step,
        "images": 8 * step,
        **numbers,
        "flops": 1000 * step,
        "seconds": seconds,
    }


def evaluation(step: int) -> dict[str, Any]:
    metrics = {"fd:local": {"mean": 10.0 / step, "low": None, "high": None, "n": 24}}
    return {
        "kind": "eval",
        "step": step,
        "images": 8 * step,
        "metrics": metrics,
        "seconds": {"student": 0.25 * step},
    }


def checkpoint(step: int) -> dict[str, Any]:
    return {"kind": "checkpoint", "step": step, "images": 8 * step, "file": f"step-{step:08d}.safetensors"}


def events(steps: int, every: int = 4) -> list[dict[str, Any]]:
    found = []
    for step in range(1, steps + 1):
        found.append(train(step, loss=1.0 / step))
        if step % every == 0:
            found += [evaluation(step), checkpoint(step)]
    return found


def written(
    path: Path, new: list[dict[str, Any]], *, after: int = 0, done: bool = True, spec: str = SPEC
) -> Record:
    with RecordWriter(path) as record:
        record.write_spec(spec)
        record.begin({"started": STARTED + after}, after_step=after)
        record.append(*new)
        for event in new:
            if event["kind"] == "eval":
                (path / "samples" / f"step-{event['step']:08d}.png").write_bytes(b"a picture")
        if done:
            record.finish({})
    return Record(path)


def runs_of(uri: str, study: str) -> list[Any]:
    client = MlflowClient(tracking_uri=uri)
    return client.search_runs([client.get_experiment_by_name(study).experiment_id])


def child(uri: str, study: str = "s") -> Any:
    (found,) = [run for run in runs_of(uri, study) if "flowrace.run_id" in run.data.tags]
    return found


def rows(uri: str) -> Counter[tuple[Any, ...]]:
    """Read every stored point directly from the database."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        query = """select key, step, value, timestamp from metrics join runs using (run_uuid)
                   where lifecycle_stage = 'active'"""
        return Counter(database.execute(query).fetchall())


def expected(record: Record, upto: int) -> Counter[tuple[Any, ...]]:
    """Derive the points from the raw events, by the table in the docstring of mlflow_mirror."""
    found: Counter[tuple[Any, ...]] = Counter()
    for event in [e for e in record.events if e["step"] <= upto]:
        time = STARTED + round(sum(1000 * s for s in event.get("seconds", {}).values()))
        if event["kind"] == "train":
            named = {
                "train/loss": event["loss"], "train/losses/flow": event["losses"]["flow"],
                "train/grad_norm": event["grad_norm"], "train/learning_rate": event["learning_rate"],
                "cost/flops": event["flops"], "cost/seconds/student": event["seconds"]["student"],
                "cost/seconds/ema": event["seconds"]["ema"],
            }  # fmt: skip
        elif event["kind"] == "eval":
            named = {"eval/fd:local": event["metrics"]["fd:local"]["mean"]}
        else:
            continue
        found.update((name, event["step"], float(value), time) for name, value in named.items())
    return found
