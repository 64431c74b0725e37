"""Logs as other tools write them, all with the same curves."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.reports.audits import falling

Curves = Mapping[tuple[str, int], Mapping[int, float]]
GRID = range(20_000, 200_001, 20_000)
CURVES: Curves = {
    (method, seed): {step: falling(speed * (1 + 0.01 * seed))(step) for step in GRID}
    for method, speed in (("old", 1.0), ("new", 2.2))
    for seed in range(3)
}
BATCH = 500


def write_rows(file: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as out:
        csv.writer(out).writerows([list(header), *rows])
    return file


def wide(folder: Path, counter: str = "Step", name: str = "{0}-seed{1}", ends: bool = True) -> list[Path]:
    """Write a chart of W&B; its runs begin with another metric of theirs, `_step`."""
    header, columns = [counter], []
    for (method, seed), curve in CURVES.items():
        run = name.format(method, seed)
        suffixes = ("", "__MIN", "__MAX") if ends else ("",)
        header += [f"{run} - {what}{end}" for what in ("_step", "eval/fid") for end in suffixes]
        columns += [
            [values[step] for step in GRID] for values in ({s: s for s in GRID}, curve) for _ in suffixes
        ]
    rows = [[step, *(column[n] for column in columns)] for n, step in enumerate(GRID)]
    return [write_rows(folder / "export.csv", header, rows)]


def tensorboard_csv(folder: Path) -> list[Path]:
    return [
        write_rows(
            folder / f"run-{method}_seed{seed}-tag-eval_fid.csv",
            ["Wall time", "Step", "Value"],
            ([1.7e9 + step, step, value] for step, value in curve.items()),
        )
        for (method, seed), curve in CURVES.items()
    ]


def capitals(folder: Path) -> list[Path]:
    rows = [[m, s, step, "fid", value] for (m, s), curve in CURVES.items() for step, value in curve.items()]
    return [write_rows(folder / "c.csv", ["Method", "Seed", "Step", "Metric", "Value"], rows)]


def lightning(folder: Path) -> list[Path]:
    """Write sparse tables: training lines have no FID, evaluation lines no loss."""
    for (method, seed), curve in CURVES.items():
        rows = [[0, step - 1, 0.5, ""] for step in curve] + [[0, step, "", v] for step, v in curve.items()]
        write_rows(
            folder / method / f"seed_{seed}" / "version_0" / "metrics.csv",
            ["epoch", "step", "train_loss", "val/fid"],
            sorted(rows, key=lambda row: row[1]),
        )
    return [folder]


def trainer_state(folder: Path) -> list[Path]:
    """Write the states of all checkpoints of Hugging Face's trainer; the last has the complete history."""
    for (method, seed), curve in CURVES.items():
        history = [{"step": step, "epoch": 0.1, "eval_fid": value} for step, value in curve.items()]
        for last in (5, len(history)):
            file = (
                folder
                / f"{method}-s{seed}"
                / f"checkpoint-{history[last - 1]['step']}"
                / "trainer_state.json"
            )
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"global_step": 1, "log_history": history[:last]}))
    return [folder]


def json_lines(folder: Path) -> list[Path]:
    files = []
    for (method, seed), curve in CURVES.items():
        files.append(folder / f"{method}_seed{seed}.jsonl")
        files[-1].write_text(
            "".join(json.dumps({"_step": s, "fid": v, "lr": 1e-4}) + "\n" for s, v in curve.items())
        )
    return files


def evaluator(folder: Path) -> list[Path]:
    """Write ADM's output, one file an evaluation, named by SiT's seven digits or in thousands of steps."""
    files = []
    for (method, seed), curve in CURVES.items():
        for step, value in curve.items():
            name = f"{step:07d}.txt" if seed else f"eval_step{step // 1000}k.txt"
            files.append(folder / f"{method}-seed{seed}" / name)
            files[-1].parent.mkdir(exist_ok=True)
            lines = ["warming up TensorFlow...", "Inception Score: 9.5", f"FID: {value!r}", "sFID: 6.1"]
            files[-1].write_text("\n".join([*lines, "Precision: 0.7", "Recall: 0.6", ""]))
    return files


def plain(folder: Path) -> list[Path]:
    """Write a log as accelerate prints it."""
    files = []
    for (method, seed), curve in CURVES.items():
        files.append(folder / f"{method}-seed{seed}.log")
        lines = [
            f"12:00 INFO __main__ step {s:,} loss 0.5\n12:01 INFO step {s:,} | fid {v!r}\n"
            for s, v in curve.items()
        ]
        files[-1].write_text("".join(lines))
    return files


PLAIN = r"step (?P<step>[\d,]+) \| fid (?P<fid>\S+)"


def events(folder: Path) -> list[Path]:
    """Write event files by TensorBoard's own writer, as scalars and as the tensors of TensorFlow 2."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for (method, seed), curve in CURVES.items():
        writer = EventFileWriter(str(folder / method / f"seed={seed}" / "tb"))
        for step, value in curve.items():
            scalar = Summary(value=[Summary.Value(tag="eval/fid", simple_value=value)])
            writer.add_event(Event(step=step, summary=scalar if seed else scalar_pb("eval/fid", value)))
        writer.close()
    return [folder]


def snapshots(folder: Path) -> list[Path]:
    """Write EDM2's metrics: the step is in the name of a snapshot, in thousands of images."""
    for (method, seed), curve in CURVES.items():
        (own := folder / f"{method}-seed{seed}").mkdir()
        lines = [
            {
                "results": {"fid": v},
                "metric": "fid",
                "snapshot_pkl": f"network-snapshot-{s * BATCH // 1000:07d}.pkl",
            }
            for s, v in curve.items()
        ]
        (own / "metric-fid.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [own / "metric-fid.jsonl" for own in sorted(folder.iterdir())]


KINDS: dict[str, Callable[[Path], list[Path]]] = {
    "W&B": wide,
    "TensorBoard CSV": tensorboard_csv,
    "data frame": capitals,
    "Lightning": lightning,
    "Hugging Face": trainer_state,
    "JSON lines": json_lines,
    "ADM": evaluator,
    "plain": plain,
    "EDM2": snapshots,
    "events": events,
}
