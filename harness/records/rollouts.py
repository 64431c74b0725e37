"""The record of a policy's episodes in a task, which reports read.

    <folder>/rollout.json     the conditions: task and its version, policy, first start, batch, noise
    <folder>/episodes.jsonl   one JSON object an episode, appended when it ends

A killed rollout continues in the same folder, and ends with the bytes of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files.files import (
    complete_lines,
    content_of,
    cut_torn_line,
    held,
    no_link,
    read_text,
    sync_file,
    write_atomic,
    writing,
)
from harness.files.parse import parse_json
from harness.records.shapes import is_count, is_number

CONDITIONS, EPISODES, LOCK = "rollout.json", "episodes.jsonl", "rollout.lock"


@dataclass(frozen=True)
class Conditions:
    """The facts that the episodes of a rollout depend on."""

    task: str
    version: str
    """Version of the simulation."""
    stages: tuple[str, ...]
    """Names of the stages that are recorded, the last of several being `both`."""
    horizon: int
    policy: str
    """Identity of the policy: a run and its step, `expert`, `random`, or `replay` and a hash of actions."""
    first: int
    """Seed of the first start; the others follow."""
    noise: int
    """Seed of the policy's noise."""
    batch: int
    """Rows of the policy's batch, on which the last bits of a network's output depend."""
    device: str = ""
    """Kind of device of the policy's network, on which they depend too; empty without a network, and in
    records of earlier versions."""

    @property
    def key(self) -> str:
        """8 hex digits that identify the conditions, for folders."""
        return hashlib.sha256(json.dumps(self.fields(), sort_keys=True).encode()).hexdigest()[:8]

    def fields(self) -> dict[str, Any]:
        """Return the conditions as a JSON object, without a device if it is empty."""
        found = asdict(self)
        return found if self.device else {name: found[name] for name in found if name != "device"}


@dataclass(frozen=True)
class Episode:
    """The result of one episode."""

    seed: int
    """The start; equal for all policies that are compared."""
    success: bool
    steps: int
    stages: Mapping[str, int | None]
    """The first step after which each stage held; None if it never did."""
    largest_reward: float
    actions: str
    """Hash of actions and rewards, equal for equal episodes."""


@dataclass(frozen=True)
class Rollout:
    """The conditions and the recorded episodes, in the order of their starts."""

    conditions: Conditions
    episodes: tuple[Episode, ...]


class RolloutWriter:
    """An open record; made by `recording`."""

    def __init__(self, folder: Path, episodes: tuple[Episode, ...]) -> None:
        self.folder = folder
        self._known = {episode.seed: episode for episode in episodes}

    def __contains__(self, seed: int) -> bool:
        return seed in self._known

    def add(self, episode: Episode) -> None:
        """Append an episode, unless it is recorded.

        Raises `UserError` if it is recorded with another result: the machine or a package has changed.
        """
        if (known := self._known.get(episode.seed)) is not None:
            if known != episode:
                raise UserError(
                    f"start {episode.seed} ends differently than recorded in {self.folder}; the device or a "
                    "package has changed: give another --out"
                )
            return
        line = json.dumps(asdict(episode), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        file = self.folder / EPISODES
        with writing(file), open(file, "ab", opener=no_link) as lines:
            lines.write(line)
            sync_file(lines)
        self._known[episode.seed] = episode


@contextmanager
def recording(folder: Path, conditions: Conditions) -> Iterator[RolloutWriter]:
    """Open the record of a folder to append to it. A torn last line of a killed process is removed.

    Raises `UserError` if the folder has other conditions, cannot be written, or is in use.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / LOCK, str(folder)):
            content = (json.dumps(conditions.fields(), indent=1) + "\n").encode()
            if not (folder / CONDITIONS).exists():
                write_atomic(folder / CONDITIONS, content)
            with open(folder / EPISODES, "ab+", opener=no_link) as lines:
                cut_torn_line(lines)
            found = read_rollout(folder)
            if found.conditions != conditions:
                raise UserError(f"{folder} has episodes under other conditions; give another --out")
            yield RolloutWriter(folder, found.episodes)


def read_rollout(folder: Path) -> Rollout:
    """Return the record of a folder; a line that is still being written is left out.

    Raises `UserError` if the folder has no record, or a damaged one.
    """
    file = folder / CONDITIONS
    if not file.is_file():
        raise UserError(f"{folder} has no {CONDITIONS}; give a folder that flowrace rollout has written")
    fields = _checked(_parsed(file, read_text(file, "JSON")), CONDITION_CHECKS, file, OPTIONAL)
    stages = tuple(fields["stages"])
    lines = complete_lines(content_of(folder / EPISODES)).splitlines()
    found: dict[int, Episode] = {}
    for number, line in enumerate(lines, 1):
        place = f"{folder / EPISODES} line {number}"
        episode = Episode(**_checked(_parsed(place, line), EPISODE_CHECKS, place))
        if tuple(episode.stages) != stages or episode.seed in found:
            raise UserError(f"{place} is not an episode of this record; delete the folder and rerun")
        found[episode.seed] = episode
    return Rollout(Conditions(**{**fields, "stages": stages}), tuple(found[seed] for seed in sorted(found)))


# Any: JSON.
def _parsed(place: object, content: str | bytes) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {error}") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_steps(value: Any) -> bool:
    return isinstance(value, dict) and all(step is None or is_count(step) for step in value.values())


Checks = Mapping[str, Callable[[Any], bool]]
CONDITION_CHECKS: Checks = {
    "task": _is_text,
    "version": _is_text,
    "stages": _are_names,
    "horizon": is_count,
    "policy": _is_text,
    "first": is_count,
    "noise": is_count,
    "batch": is_count,
    "device": _is_text,
}
OPTIONAL = {"device"}
EPISODE_CHECKS: Checks = {
    "seed": is_count,
    "success": lambda value: isinstance(value, bool),
    "steps": is_count,
    "stages": _are_steps,
    "largest_reward": is_number,
    "actions": _is_text,
}


def _checked(found: Any, checks: Checks, place: object, optional: Collection[str] = ()) -> dict[str, Any]:
    """Return a JSON object. Raises `UserError` for missing, unknown or invalid fields."""
    if not isinstance(found, dict) or {*found, *optional} != checks.keys():
        raise UserError(f"{place} does not have exactly the fields {', '.join(checks)}")
    for name, value in found.items():
        if not checks[name](value):
            raise UserError(f"{place}: the field '{name}' is invalid: {json.dumps(value)[:40]}")
    return found
