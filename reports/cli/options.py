"""Command-line options that several commands of reports share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])

AXES = ("steps", "images", "flops", "seconds", "gpu_seconds")
"""The axes of reports/stats/curves.py, repeated here so that `--help` imports no numerical library."""

MOST_CONFIDENCE = 1 - 1e-9
"""The highest level of confidence, that of a claim, repeated here for the same reason."""
DIRECTORIES = click.argument("directories", metavar="DIR|LOG|URI...", nargs=-1, required=True)
METRIC = click.option(
    "--metric",
    help="Metric name as recorded, for example fd:local. Reports and figures also take the shortfall of a "
    "share, for example 1-obeys:colour. Default: the study's, and for reports else the first evaluated.",
)
TARGET = click.option(
    "--target",
    metavar="RULE",
    help="Value to reach: 8.0, a list 8,10, baseline@STEP, or 90% of the way to the baseline's final value. "
    "Default: the study's, else the lowest that every finished run reaches.",
)
BASELINE = click.option(
    "--baseline",
    help="Arm to compare with: a method or a label. Default: the study's, else flow.",
)
LABELS = click.option(
    "--labels",
    "label_words",
    multiple=True,
    metavar="ARM=NAME",
    help="Shown name of a method or an arm, for example repa=REPA; may be repeated. Default: the study's.",
)
PROTOCOL = click.option(
    "--protocol",
    metavar="NAME=VALUE,...",
    help="Conditions of the evaluations to use, for example guidance=1.5. Default: those of the runs' specs.",
)
ACROSS = click.option(
    "--across",
    type=click.Choice(["pooled", "cells"]),
    help="Headline of a study with several cells: pooled over cells, or per cell. Default: the study's, else "
    "pooled if all cells compare the same arms.",
)
PUBLISHED = click.option(
    "--published",
    multiple=True,
    metavar="METHOD[:SIZE[:METRIC]]",
    help="Published curves to show in a separate panel, for example repa:XL:FID; may be repeated.",
)
AXIS = click.option(
    "--axis",
    type=click.Choice(AXES),
    default="steps",
    show_default=True,
    help="Cost to compare on.",
)
CONFIDENCE = click.option(
    "--confidence",
    type=click.FloatRange(0.5, MOST_CONFIDENCE),
    default=0.95,
    show_default=True,
    help="Confidence level of the interval.",
)
REGISTER = click.option(
    "--register",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Register file. Default: register.jsonl next to the claim.",
)
CLAIMS_FOLDER = click.option(
    "--claims",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of your own claims (*.toml), read in addition to those that come with flowrace.",
)


def race_options(command: Command) -> Command:
    """Add DIR..., --metric, --target, --baseline, --protocol, --across, --labels and --published."""
    for option in (PUBLISHED, LABELS, ACROSS, PROTOCOL, BASELINE, TARGET, METRIC, DIRECTORIES):
        command = option(command)
    return command


def log_options(command: Command) -> Command:
    """Add --map (`map_file`) and --pattern (`patterns`), for logs whose names or units are not clear."""
    command = click.option(
        "--pattern",
        "patterns",
        multiple=True,
        metavar="REGEX",
        help="Names of runs in logs, with groups method and seed; or lines of plain logs, with a group step "
        "and a group for each metric. May be given for both.",
    )(command)
    return click.option(
        "--map",
        "map_file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="How to read logs (TOML): pattern, line, [runs], [methods], [metrics], [steps].",
    )(command)


def parse_labels(words: Sequence[str]) -> dict[str, str]:
    """Return shown names by arm from `ARM=NAME`; raises `UserError` for anything else."""
    from harness.errors import UserError

    found = {}
    for word in words:
        # The label of an arm may contain " = ", a name must not.
        arm, sign, name = word.rpartition("=")
        if not (sign and arm.strip() and name.strip()):
            raise UserError(f"--labels {word}: expected ARM=NAME, for example repa=REPA")
        found[arm.strip()] = name.strip()
    return found
