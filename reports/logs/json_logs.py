"""JSON logs: `trainer_state.json` of Hugging Face, W&B's summaries, JSON lines, snapshots of EDM2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import read_text
from harness.files.parse import parse_json
from reports.logs.curves import LogCurve, LogPoint, Understood, drop_smoothed, number
from reports.logs.log_map import LogMap
from reports.logs.names import logged_config, name_run
from reports.logs.tables import COUNTERS, NOT_METRICS

HISTORY, SUMMARY = "trainer_state.json", "wandb-summary.json"
SNAPSHOT = re.compile(r"(?:snapshot|training-state)-(\d+)(?:-[\d.]+)?\.\w+$")
"""A snapshot of EDM2 or StyleGAN, whose name gives its thousands of images."""


def read_json(file: Path, rules: LogMap) -> Understood:
    """Return the curves of a JSON log; raises `UserError` for one of no known layout."""
    try:
        table = parse_json(read_text(file, "JSON"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if isinstance(table, Mapping) and isinstance(table.get("log_history"), list):
        return _curves(file, _rows(file, table["log_history"]), rules)
    if file.name == SUMMARY and isinstance(table, Mapping):
        found = _curves(file, [(str(file), table)], rules)
        note = f"{file} holds the last values only."
        return Understood(found.curves, (*found.notes, note))
    raise UserError(f"{file}: no log of a known kind (expected {HISTORY} with log_history, or {SUMMARY})")


def read_json_lines(file: Path, rules: LogMap) -> Understood:
    """Return the curves of a log with one JSON object a line; a torn last line is left out with a note."""
    lines = [
        (n, line) for n, line in enumerate(read_text(file, "JSON lines").splitlines(), 1) if line.strip()
    ]
    rows: list[tuple[str, Any]] = []
    notes = []
    for n, line in lines:
        try:
            rows.append((f"{file} line {n}", parse_json(line)))
        except (ValueError, RecursionError) as error:
            if n != lines[-1][0]:
                raise UserError(f"{file} line {n} is not JSON: {error}") from error
            notes.append(f"{file}: the last line is torn and left out.")
    found = _curves(file, _rows(file, [row for _, row in rows], [where for where, _ in rows]), rules)
    return Understood(found.curves, (*found.notes, *notes))


def _rows(
    file: Path, rows: Iterable[Any], places: Iterable[str] | None = None
) -> list[tuple[str, Mapping[str, Any]]]:
    listed = list(rows)
    named = list(places) if places is not None else [f"{file} entry {n}" for n in range(1, len(listed) + 1)]
    for where, row in zip(named, listed, strict=True):
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: expected an object with a step and metrics")
    return list(zip(named, listed, strict=True))


def _curves(file: Path, rows: Iterable[tuple[str, Mapping[str, Any]]], rules: LogMap) -> Understood:
    folder = file.parent
    generic = file.name in (HISTORY, SUMMARY) or file.stem.startswith(("metric-", "stats", "metrics", "log"))
    path = folder.absolute() if generic else folder / file.stem
    settings = folder if file.name != HISTORY else folder.parent
    named = name_run(str(folder) if generic else file.stem, rules, path, logged_config(settings))
    found: dict[str, list[LogPoint]] = {}
    for where, row in rows:
        values = dict(_values(row))
        if not values:
            continue
        step = _step(row, where, rules)
        for name, value in values.items():
            found.setdefault(name, []).append(LogPoint(step, number(value, where, name), where))
    names, notes = drop_smoothed(file, found)
    curves = [
        LogCurve(named.method, named.seed, rules.metric(name), tuple(found[name]), str(file), str(folder))
        for name in names
    ]
    if not curves:
        raise UserError(f"{file}: no entry has a step and a metric")
    return Understood(tuple(curves), tuple(notes))


def _values(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the metrics of an entry: its numbers, and those in `results` of EDM2 and StyleGAN."""
    nested = row.get("results")
    for name, value in (nested if isinstance(nested, Mapping) else row).items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # W&B writes numbers that are not finite as text.
        if (is_number or value in ("NaN", "Infinity", "-Infinity")) and not _is_counter(name):
            yield name, value


def _is_counter(name: str) -> bool:
    return name.lower() in NOT_METRICS or name.startswith("_")


def _step(row: Mapping[str, Any], where: str, rules: LogMap) -> int:
    counters = sorted(
        (name for name in row if name.lower() in COUNTERS),
        key=lambda name: list(COUNTERS).index(name.lower()),
    )
    snapshot = SNAPSHOT.search(str(row.get("snapshot_pkl", "")))
    if not counters and snapshot:
        return rules.steps_of(int(snapshot[1]), "kimg", where)
    if not counters:
        raise UserError(f"{where}: nothing counts steps (known: {', '.join(sorted(COUNTERS))})")
    count = number(row[counters[0]], where, counters[0])
    return rules.steps_of(count, COUNTERS[counters[0].lower()], where)
