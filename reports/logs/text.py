"""Text logs: outputs of ADM's evaluator, one evaluation a file, and plain logs by a pattern."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from harness.errors import UserError
from harness.files.files import read_text
from reports.logs.curves import LogCurve, LogPoint, Understood, number
from reports.logs.log_map import LogMap, Unit
from reports.logs.names import SEPARATORS, name_run, tails

ADM = {
    "Inception Score": "inception_score",
    "FID": "fid",
    "sFID": "sfid",
    "Precision": "precision",
    "Recall": "recall",
}
"""Lines of ADM's `evaluator.py`, and the names of their metrics."""
ADM_LINE = re.compile(rf"^\s*({'|'.join(ADM)}):\s*(\S+)\s*$", re.MULTILINE)
STEP = re.compile(
    r"(?:steps?|iter(?:ation)?|ckpt|checkpoint)[-_=]?(\d+)(k|m)?(?![A-Za-z0-9])|(?<!\d)(\d{6,9})(?!\d)", re.I
)
"""A step in a file name: step400000, step-400k, or the seven digits of SiT's checkpoints."""
THOUSANDS = {None: 1, "k": 1000, "m": 1_000_000}
COUNTED: dict[str, Unit] = {"step": "steps", "images": "images", "kimg": "kimg", "epoch": "epochs"}
GROUPS = ("method", "seed", "metric", "value")


def read_text_log(file: Path, rules: LogMap) -> Understood:
    """Return the curves of a text; raises `UserError` without a pattern unless an evaluator wrote it."""
    text = read_text(file)
    if rules.line is not None:
        return _by_line(file, text, rules)
    if {"FID", "sFID"} <= {match[1] for match in ADM_LINE.finditer(text)}:
        return _evaluator(file, text, rules)
    raise UserError(
        f"{file}: a log of no known kind; describe its lines, for example "
        r"--pattern 'step (?P<step>\d+).* fid (?P<fid>\S+)'"
    )


def _evaluator(file: Path, text: str, rules: LogMap) -> Understood:
    """Read one evaluation; step, method and seed come from the names of the file and its folders."""
    stem = file.with_suffix("") if file.suffix in (".txt", ".log", ".out") else file
    for name in tails(stem.absolute()):
        if steps := list(STEP.finditer(name)):
            break
    else:
        raise UserError(
            f"{file}: its name does not give the step; expected for example repa-seed0-step400000.txt"
        )
    if len(steps) > 1:
        raise UserError(
            f"{file}: its name has several numbers that may be the step ({', '.join(s[0] for s in steps)}); "
            "expected for example repa-seed0-step400000.txt"
        )
    step = int(steps[0][1] or steps[0][3]) * THOUSANDS[steps[0][2].lower() if steps[0][2] else None]
    rest = Path(*(_without_step(part) or "run" for part in stem.absolute().parts))
    named = name_run(rest.name, rules, rest)
    where = str(file)
    points = {
        ADM[match[1]]: LogPoint(
            rules.steps_of(step, "steps", where), number(match[2], where, match[1]), where
        )
        for match in ADM_LINE.finditer(text)
    }
    return Understood(
        tuple(
            LogCurve(named.method, named.seed, rules.metric(metric), (point,), where, rest.name)
            for metric, point in points.items()
        )
    )


def _without_step(name: str) -> str:
    return STEP.sub("", name).strip(SEPARATORS) if STEP.search(name) else name


def _by_line(file: Path, text: str, rules: LogMap) -> Understood:
    """Read the lines that match the pattern; its groups are step, method, seed, metric, value or metrics."""
    pattern = re.compile(rules.line or "")
    counter = next(name for name in COUNTED if name in pattern.groupindex)
    found: dict[tuple[str, int, str], list[LogPoint]] = {}
    default = None
    for n, line in enumerate(text.splitlines(), 1):
        if (match := pattern.search(line)) is None:
            continue
        where, given = f"{file} line {n}", match.groupdict()
        if given.get("method") and re.fullmatch("[0-9]{1,18}", given.get("seed") or ""):
            named = rules.methods.get(given["method"], given["method"]), int(given["seed"])
        else:
            default = default or name_run(file.stem, rules, file.absolute().with_suffix(""))
            named = default.method, default.seed
        count = number(given[counter].replace(",", ""), where, counter)
        step = rules.steps_of(count, COUNTED[counter], where)
        for metric, value in _values(given):
            key = (*named, rules.metric(metric))
            found.setdefault(key, []).append(LogPoint(step, number(value.rstrip(",;"), where, metric), where))
    if not found:
        raise UserError(f"{file}: no line matches '{rules.line}'")
    return Understood(
        tuple(LogCurve(*key, tuple(points), str(file), file.stem) for key, points in found.items())
    )


def _values(given: dict[str, str | None]) -> Iterator[tuple[str, str]]:
    if given.get("value") is not None:
        yield given.get("metric") or "value", given["value"] or ""
    for name, value in given.items():
        if name not in (*GROUPS, *COUNTED) and value is not None:
            yield name, value
