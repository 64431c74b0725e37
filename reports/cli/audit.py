"""The commands `flowrace audit`, `audit register`, `audit selftest` and `audit power`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from harness.config.options import JSON_OPTION, examples
from reports.cli.collector import collecting_rarely
from reports.cli.options import AXIS, CONFIDENCE, METRIC, PROTOCOL, REGISTER, TARGET, log_options

SOURCES = click.argument("sources", metavar="DIR|LOG|URI...", nargs=-1, required=True)


class AuditGroup(click.Group):
    """The audit commands; `claim` is the default one: `flowrace audit CLAIM.toml DIR...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [word for word in args if not word.startswith("-")]
        if words and words[0] not in self.commands:
            args = ["claim", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=AuditGroup,
    subcommand_metavar="CLAIM.toml DIR... | COMMAND",
    epilog=examples("flowrace audit claim.toml runs/digits --json", "flowrace audit register claim.toml"),
)
def audit() -> None:
    """Audit a claimed speed-up: `flowrace audit CLAIM.toml DIR...` prints supported, refuted or
    inconclusive, and why."""


@audit.command(epilog="Example: flowrace audit claim.toml curves.csv")
@click.argument("words", metavar="CLAIM.toml... DIR|LOG|URI...", nargs=-1, required=True)
@REGISTER
@PROTOCOL
@log_options
@JSON_OPTION
@collecting_rarely()
def claim(
    words: tuple[str, ...],
    file: Path | None,
    protocol: str | None,
    map_file: Path | None,
    patterns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Judge claims on runs (the default command).

    Runs are run directories or folders of them, a CSV (method, seed, step, metric, value; optional images,
    flops, seconds, gpu_seconds, protocol), logs of W&B, TensorBoard and others (flowrace logs convert shows
    how they are understood), or an MLflow store (sqlite:///mlflow.db, a folder mlruns, or http on this
    machine; #NAME for one experiment). Claims about success ([[success]]) are judged on run directories, at
    each start of their last evaluation. Several claims form one family: their verdicts are shown raw and
    adjusted (Holm). The exit code is 0 for any verdict.
    """
    from reports.audit.judge_files import judge_claims
    from reports.audit.success import judge_success
    from reports.cli.audit_card import audit_json, print_cards
    from reports.cli.success_card import success_card, success_json
    from reports.logs.log_map import read_map

    claims, sources = _split(words)
    rules = read_map(map_file, patterns)
    found = judge_claims(claims, sources, file, _progress, protocol=protocol, rules=rules)
    folders = [Path(source) for source in sources]
    succeeded = judge_success(claims, folders, file, protocol=protocol)
    if as_json:
        rows = [*map(audit_json, found), *map(success_json, succeeded)]
        click.echo(json.dumps(rows[0] if len(rows) == 1 else {"claims": rows}, indent=1, allow_nan=False))
        return
    if found:
        print_cards(found)
    for one in succeeded:
        click.echo(success_card(one))


@audit.command(epilog="Example: flowrace audit register claim.toml")
@click.argument("claims", metavar="CLAIM.toml...", nargs=-1, required=True, type=click.Path(path_type=Path))
@REGISTER
@JSON_OPTION
def register(claims: tuple[Path, ...], file: Path | None, as_json: bool) -> None:
    """Register claims before their runs begin: hash and UTC time, in an append-only file.

    Commit that file, or send the hash to a third party: a register that only its author holds proves nothing.
    """
    from reports.audit.inputs.success_claim import read_all_claims
    from reports.audit.register import NAME, register_claims

    found = [
        one
        for source in claims
        for one in register_claims(file or source.with_name(NAME), read_all_claims(source))
    ]
    if as_json:
        rows = [{"hash": e.hash, "name": e.name, "time": e.time, "new": new} for e, new in found]
        click.echo(json.dumps({"claims": rows}, indent=1))
        return
    for entry, new in found:
        click.echo(f"{entry.hash}  {entry.time}  {entry.name}{'' if new else '  (registered before)'}")


@audit.command(epilog="Example: flowrace audit selftest runs/digits --method flow")
@SOURCES
@click.option("--method", help="Method to measure. Default: the study's baseline, else flow.")
@METRIC
@TARGET
@AXIS
@CONFIDENCE
@log_options
@JSON_OPTION
def selftest(
    sources: tuple[str, ...],
    method: str | None,
    metric: str | None,
    target: str | None,
    axis: str,
    confidence: float,
    map_file: Path | None,
    patterns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Race a baseline against itself on disjoint seeds: the noise floor of this installation.

    The interval must contain 1. Its half width is the smallest difference that two arms with this number of
    seeds resolve.
    """
    from reports.audit.selftest import run_selftest
    from reports.stats.number_format import factor, interval

    name, arms, value = _runs(sources, [method], metric, target, (map_file, patterns))
    found = run_selftest(arms[name], axis, value, confidence)
    gain = found.gain
    if as_json:
        row = {
            "method": found.method,
            "target": value,
            "axis": axis,
            "seeds": found.seeds,
            "holds": found.holds,
        }
        ends = {
            "speedup": gain.estimate,
            "low": gain.low or None,
            "high": _finite(gain.high),
            "noise_floor": found.floor,
        }
        click.echo(json.dumps(row | ends, indent=1))
        return
    click.echo(
        f"{name} against itself, seeds {_list(found.seeds[0])} and {_list(found.seeds[1])}, "
        f"to {value:g} in {axis}"
    )
    if found.holds is None:
        click.echo(
            "no interval: no two runs have times on both sides; choose a target that every run crosses"
        )
        return
    speedup = f"{factor(gain.factor)}x {interval(gain.low, gain.high)}"
    click.echo(
        f"speed-up {speedup} ({100 * confidence:g} %): "
        f"{'contains 1' if found.holds else 'DOES NOT CONTAIN 1'}"
    )
    if found.floor:
        click.echo(f"noise floor: a factor of {factor(found.floor)}")


@audit.command(epilog=examples("flowrace audit power runs/pilot --method flow --candidate repa --factor 1.2"))
@SOURCES
@click.option("--method", help="Method to measure. Default: the study's baseline, else flow.")
@click.option("--candidate", help="Second method on the same seeds; the spread is then that of pairs.")
@METRIC
@TARGET
@AXIS
@click.option(
    "--factor", "wanted", type=click.FloatRange(0, min_open=True), help="Speed-up to distinguish from 1."
)
@CONFIDENCE
@log_options
@JSON_OPTION
def power(
    sources: tuple[str, ...],
    method: str | None,
    candidate: str | None,
    metric: str | None,
    target: str | None,
    axis: str,
    wanted: float | None,
    confidence: float,
    map_file: Path | None,
    patterns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Estimate from pilot runs which factors 2 to 20 seeds detect with 80 % power, before spending
    GPU-hours."""
    from reports.audit.pilot import read_pilot, seeds_for

    _, arms, value = _runs(
        sources, [method, *([candidate] if candidate else [])], metric, target, (map_file, patterns)
    )
    found = read_pilot(arms, axis, value, confidence)
    needed = seeds_for(wanted, found.spread, confidence) if wanted else None
    if as_json:
        rows = [
            {"n": n, "factor": f, "low": low, "high": high} for n, (f, low, high) in found.detectable.items()
        ]
        spread = {
            "sd": found.spread.sd,
            "low": found.spread.low,
            "high": found.spread.high,
            "n": found.spread.n,
        }
        about = {"arms": found.arms, "target": value, "axis": axis, "paired": found.spread.paired}
        click.echo(
            json.dumps(
                about | {"spread": spread, "detectable": rows, "factor": wanted, "seeds": needed}, indent=1
            )
        )
        return
    _print_power(found, axis, wanted, needed)


def _print_power(found: Any, axis: str, wanted: float | None, needed: int | None) -> None:
    from rich.table import Table

    from harness.files.terminal import Console
    from reports.stats.number_format import factor

    spread = found.spread
    what = "pairs" if spread.paired else "seeds per arm, unpaired"
    click.echo(
        f"{' against '.join(found.arms)}, to {found.target:g} in {axis}: log ratios spread by "
        f"{100 * spread.sd:.2g} % [{100 * spread.low:.2g}, {100 * spread.high:.2g}] (n = {spread.n})"
    )
    table = Table("n", "detectable factor", "at the ends of the spread", box=None, padding=(0, 2, 0, 0))
    for n, (at, low, high) in found.detectable.items():
        table.add_row(str(n), f"{factor(at)}x", f"{factor(low)}x to {factor(high)}x")
    Console(width=80, highlight=False).print(table)
    click.echo(f"with 80 % power; n is {what}")
    if wanted:
        click.echo(f"{wanted:g}x needs {'more than 1000' if needed is None else needed} {what}")


def _split(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the claim files, and the sources of runs."""
    from harness.errors import UserError

    files = [Path(word) for word in words if word.endswith(".toml") and not Path(word).is_dir()]
    sources = [word for word in words if Path(word) not in files]
    if not files:
        raise UserError(
            f"no claim among {', '.join(words)}: expected CLAIM.toml DIR..., "
            "for example claim.toml runs/digits"
        )
    if not sources:
        raise UserError(
            f"no runs to judge {files[0]} on: expected CLAIM.toml DIR..., for example {files[0]} runs/digits"
        )
    return files, sources


def _runs(
    sources: Sequence[str],
    methods: Sequence[str | None],
    metric: str | None,
    target: str | None,
    reading: tuple[Path | None, Sequence[str]],
) -> tuple[str, dict[str, Any], float]:
    """Return the name of the first method, the runs of all methods, and the target.

    Defaults come from the study. `reading` is --map and --pattern. Raises `UserError` for runs whose values
    cannot be compared.
    """
    from harness.errors import UserError
    from harness.records.targets import target_value
    from reports.audit.inputs.log_runs import only_metric
    from reports.audit.inputs.read import natural_method, read_arms
    from reports.audit.preconditions import protocol_reason
    from reports.logs.log_map import read_map
    from reports.race.study_folder import read_study
    from reports.race.target import requested_rules
    from reports.stats.crossing import reachable_target

    study = read_study([Path(source) for source in sources])
    names = [name or study.baseline or natural_method(sources) for name in methods]
    rules = read_map(*reading)
    metric = metric or study.metric or only_metric(sources, rules)
    if metric is None:
        raise UserError(
            "no study.toml in these folders names a metric; give one, for example --metric fd:local"
        )
    if len(set(names)) < len(names):
        raise UserError(
            f"--method and --candidate are both '{names[0]}'; to compare a method with itself: "
            "flowrace audit selftest"
        )
    arms = read_arms(sources, names, metric, _progress, rules=rules)
    logs = [log for own in arms.runs.values() for log in own.values()]
    for name in names:
        if not arms.runs[name]:
            raise UserError(f"no finished run of {name} was evaluated by '{metric}'")
    if reason := protocol_reason(logs):
        raise UserError(f"values of these runs cannot be compared: {reason.text}")
    rules = requested_rules(target) or study.rules_of(metric)
    base = [(log.curve.steps, log.curve.fitted) for log in arms.runs[names[0]].values() if not log.failed]
    value = target_value(rules[0], base) if rules else reachable_target([log.curve for log in logs])
    if value is None:
        raise UserError(f"target {rules[0]} needs a finished run of {names[0]}")
    return names[0], arms.runs, value


def _progress(runs: Sequence[Any]) -> Iterable[Any]:
    """Yield the runs one by one, with a progress bar in a terminal."""
    # Imported here, because rich is slow to import and `--help` shows no bar.
    from harness.files.progress import tracked

    return tracked(runs, "reading")


def _finite(value: float | None) -> float | None:
    return None if value is None or value == float("inf") else value


def _list(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))
