"""Commands that are killed and run again: what they leave is compared with what an unbroken one leaves.

A scene is a command on a small run, study or file. A kill copies the folder from which the scene starts, runs
the command in a forked process group, kills the group at an instant, runs the same command again, and
compares every file. Instants are random, or chosen: in a step, in a half-written file or line, or around a
rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock

import tomli_w
import torch

from harness.config.tables import parse_override
from harness.records import checkpoint, evaluations, rollouts
from harness.records.record import CLOCK, LOCK, Record, find_records
from harness.records.record_writer import RecordWriter
from sweeps.launch import local
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study
from sweeps.plan.study_folder import write_plan
from tests.promises import test_kill as kill
from tests.support.commands import flowrace as in_this_process
from tests.support.forked import exit_code, flowrace, fork, fork_printing, has_ended, with_own_output
from tests.support.modal import MODALITIES, SMALL, method_words
from tests.support.released import released
from tests.support.runs import TINY, events

METHODS = ("flow", "repa", "self_flow", "sra", "haste")
"""No auxiliary loss, an encoder, two times and an EMA teacher, a teacher alone, and an encoder that stops."""
OF_MODALITY = {"image": ("backbone.patch=2",), "video": MODALITIES["video"], "audio": MODALITIES["audio"]}
LAYOUTS = ("sit", "repa", "self-flow", "irepa", "reg")
STEPS, EXTENDED = 6, 12
EPISODES, TASK = 6, "open-and-place:open"
POLICIES = ("run", "expert")
SETTINGS = (*TINY, *SMALL, "train.checkpoint_every=2", "eval.samples=8", "data.workers=0")
ATTEMPTS = 20
"""Tries of a random kill, because a command may end before its instant."""
AT_RANDOM = "at random"
# A number of calls before the kill, of which one is drawn.
Chosen = dict[str, tuple[Callable[[int], None], range]]


class Differs(AssertionError):
    """A command that was killed and rerun left something else than an unbroken one."""


@dataclass(frozen=True)
class Scene:
    """A command of one method and modality, and the folder that it starts from."""

    command: str
    method: str
    modality: str
    words: Callable[[Path], Sequence[object]]
    """The command on a folder."""
    before: Path
    """The content of the folder before the command."""
    instants: Chosen
    """Instants at which the command can be killed, by name."""

    @property
    def name(self) -> str:
        return f"{self.command} {self.method} {self.modality}"


@dataclass(frozen=True)
class Unbroken:
    """The result of a scene that is not killed, and its duration."""

    left: str
    seconds: float


def torn_answer(calls: int) -> None:
    """Die when the last line of a file of evaluations is half-written."""

    def half(file: IO[bytes]) -> None:
        file.flush()
        os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - 9)

    kill._die_in(evaluations, "sync_file", calls, evaluations.sync_file, instead=half)


def torn_episode(calls: int) -> None:
    """Die when the line of an episode is half-written."""

    def half(file: IO[bytes]) -> None:
        file.flush()
        os.truncate(file.fileno(), os.fstat(file.fileno()).st_size - 9)

    kill._die_in(rollouts, "sync_file", calls, rollouts.sync_file, instead=half)


def in_a_temporary_file(calls: int) -> None:
    """Die while safetensors writes a checkpoint to its own temporary file, which it would rename."""

    def begun(_tensors: Any, path: Path, metadata: Any) -> None:
        (path.parent / ".tmpA1b2C3").write_bytes(b"half")

    kill._die_in(checkpoint, "save_file", calls, checkpoint.save_file, instead=begun)


def in_a_clock(calls: int) -> None:
    """Die while the seconds at a checkpoint are written."""

    def half(record: RecordWriter, *_: Any) -> None:
        (record.path / f".{CLOCK}.tmp").write_bytes(b"{")

    kill._die_in(RecordWriter, "write_clock", calls, RecordWriter.write_clock, instead=half)


TRAINING: Chosen = {
    "early": (kill.in_a_step, range(1)),
    "in a step": (kill.in_a_step, range(1, STEPS)),
    "in a half-written checkpoint": (kill.halfway_through_a_checkpoint, range(3)),
    "in a temporary file": (in_a_temporary_file, range(3)),
    # More than there are; a kill that does not occur is drawn again.
    "before a rename": (kill.before_a_rename, range(16)),
    "after a rename": (kill.after_a_rename, range(16)),
    "in a half-written clock": (in_a_clock, range(3)),
    "in a half-written line": (kill.halfway_through_a_line, range(STEPS)),
    "in an evaluation": (kill.in_an_evaluation, range(1)),
    "before old checkpoints are removed": (kill.before_old_checkpoints_are_pruned, range(3)),
}
MEASURING: Chosen = {
    "in a half-written line": (torn_answer, range(2)),
    "before a rename": (kill.before_a_rename, range(1)),
    "after a rename": (kill.after_a_rename, range(1)),
}
ACTING: Chosen = {
    "in a half-written line": (torn_episode, range(EPISODES)),
    "before a rename": (kill.before_a_rename, range(1)),
    "after a rename": (kill.after_a_rename, range(1)),
}
IMPORTING: Chosen = {
    "in a half-written checkpoint": (kill.halfway_through_a_checkpoint, range(1)),
    "in a temporary file": (in_a_temporary_file, range(1)),
    "before a rename": (kill.before_a_rename, range(4)),
    "after a rename": (kill.after_a_rename, range(4)),
    "in a half-written line": (kill.halfway_through_a_line, range(1)),
}


def words_of(method: str, modality: str, *more: str) -> list[str]:
    """Return the settings of a run as words of a command."""
    settings = (*SETTINGS, *OF_MODALITY[modality], *method_words(method), *more)
    return [word for setting in settings for word in ("--set", setting)]


def run_scene(method: str, modality: str, folder: Path) -> Scene:
    """Return the training of a run."""
    words = words_of(method, modality)
    before = folder / "nothing"
    before.mkdir(parents=True, exist_ok=True)

    def command(out: Path) -> Sequence[object]:
        return ("run", "digits", *words, "--out", out, "--no-track", "--quiet")

    return Scene("run", method, modality, command, before, TRAINING)


def extend_scene(method: str, modality: str, folder: Path) -> Scene:
    """Return the extension of a finished run."""
    short = run_scene(method, modality, folder)
    before = folder / "short"
    done(short.words(before))
    (name,) = (record.id for record in find_records(before))

    def command(out: Path) -> Sequence[object]:
        return ("extend", out / name, "--steps", EXTENDED, "--no-track", "--json")

    return Scene("extend", method, modality, command, before, TRAINING)


def eval_scene(modality: str, folder: Path) -> Scene:
    """Return later evaluations of a study of all five methods."""
    study_file = folder / "five.toml"
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "name": "five",
        "base": "digits",
        "axes": {"method.name": list(METHODS)},
        "set": dict(parse_override(setting) for setting in (*SETTINGS, *OF_MODALITY[modality])),
        "methods": {
            name: {"encoder": {"name": "random:small"}} for name in METHODS if len(method_words(name)) > 1
        },
    }
    study_file.write_text(tomli_w.dumps(table))
    before, study = folder / "study", load_study(str(study_file))
    write_plan(study, plan := make_plan(study), before)
    for method, run in zip(METHODS, plan.runs, strict=True):
        done(("run", "digits", *words_of(method, modality), "--out", before, "--no-track", "--quiet"))
        assert (before / run.id).is_dir(), method

    def command(out: Path) -> Sequence[object]:
        return ("eval", out, "--guidance", "2", "--steps", "all", "--slots", "1", "--json")

    return Scene("eval STUDY", "all five", modality, command, before, MEASURING)


def import_scene(layout: str, folder: Path) -> Scene:
    """Return the import of weights in a layout."""
    state, _ = released(layout, shape=(1, 8, 8), extra=32)
    before = folder / "weights"
    before.mkdir(parents=True)
    torch.save(state, before / "weights.pt")
    kept = [s for s in TINY if not s.startswith(("backbone.size", "train.steps"))]
    reg = ["method.encoder.name=random:tiny"] if layout == "reg" else []
    words = [word for setting in (*kept, "data.name=digits", *reg) for word in ("--set", setting)]

    def command(out: Path) -> Sequence[object]:
        given = ("--layout", layout, "--heads", 4, "--step", 12, *words)
        return ("import", out / "weights.pt", "--out", out / "runs", *given)

    return Scene("import", layout, "image", command, before, IMPORTING)


def rollout_scene(policy: str, folder: Path) -> Scene:
    """Return the rollout of a tiny policy of flow matching, or of the scripted expert."""
    before = folder / "policy"
    before.mkdir(parents=True)
    if policy == "run":
        done(("data", "demos", TASK, "-n", 4, "--out", folder / "demos", "--json"))
        kept = [s for s in TINY if not s.startswith(("eval.", "train.steps"))]
        own = ("train.steps=2", "data.frames=1", "backbone.patch=8", "eval.samples=4", "eval.batch_size=4")
        words = [word for setting in (*kept, *own) for word in ("--set", setting)]
        given = ("--from-scratch", "--task", TASK, "--demos", folder / "demos", "--out", before)
        done(("finetune", "demos", *given, *words, "--no-track", "--quiet"))
    names = [path.name for path in before.iterdir()]

    def command(out: Path) -> Sequence[object]:
        acting = out / names[0] if names else policy
        given = ("--task", TASK, "-n", EPISODES, "--batch", 2, "--out", out / "acts", "--json")
        return ("rollout", acting, *given)

    return Scene("rollout", "flow" if names else "none", "robot", command, before, ACTING)


def done(words: Sequence[object]) -> None:
    """Run a command in this process, whose caches its forked processes share; it must succeed."""
    result = in_this_process(*words)
    assert result.exit_code == 0, f"{' '.join(map(str, words))}: {result.output} {result.exception!r}"


def unbroken(scene: Scene, folder: Path) -> Unbroken:
    """Run a scene without a kill: in this process, whose caches it fills, and timed in another one."""
    for name in ("warm", "timed"):
        shutil.copytree(scene.before, folder / name)
    if scene.command != "eval STUDY":
        done(scene.words(folder / "warm"))
    begun = time.monotonic()
    _must_end(scene, folder / "timed")
    seconds = time.monotonic() - begun
    left = what_is_left(folder / "timed")
    if scene.command != "eval STUDY" and what_is_left(folder / "warm") != left:
        raise Differs(f"{scene.name}: two unbroken runs differ")
    return Unbroken(left, seconds)


def check_kill(scene: Scene, expected: Unbroken, instant: str, folder: Path, dice: random.Random) -> None:
    """Kill a scene at an instant, run it again, and raise `Differs` if it leaves something else."""
    for _ in range(ATTEMPTS):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(scene.before, folder)
        if _died(scene, expected, instant, folder, dice):
            break
    else:
        raise AssertionError(f"{scene.name}: no kill {instant} in {ATTEMPTS} attempts")
    _must_end(scene, folder)
    if (left := what_is_left(folder)) != expected.left:
        raise Differs(f"{scene.name}: killed {instant}, it left other {_differing(expected.left, left)}")


def _died(scene: Scene, expected: Unbroken, instant: str, folder: Path, dice: random.Random) -> bool:
    """Run a scene with a kill; return whether it was killed before its end."""
    moment, arm = None, None
    if instant == AT_RANDOM:
        moment = dice.uniform(0, expected.seconds)
    else:
        where, calls = scene.instants[instant]
        arm = partial(where, dice.choice(calls))
    child = _start(scene, folder, arm)
    if moment is not None:
        _kill_group_after(child, moment)
    code = exit_code(child)
    # A job that dies by itself is a failure of the study's command.
    jobs_died = arm is not None and scene.command == "eval STUDY" and code == 1
    return code == -signal.SIGKILL or jobs_died


def _kill_group_after(leader: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not has_ended(leader):
        time.sleep(0.005)
    # It may have ended, or not yet be a leader.
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _must_end(scene: Scene, folder: Path) -> None:
    code = exit_code(_start(scene, folder, None))
    if code != 0:
        raise Differs(f"{scene.name}: exit code {code}: {_output(folder).read_text()[-2000:]}")


def _start(scene: Scene, folder: Path, arm: Callable[[], None] | None) -> int:
    words = [str(word) for word in scene.words(folder)]

    def work() -> None:
        local.subprocess = SimpleNamespace(Popen=ForkedJob, DEVNULL=None, STDOUT=None)  # type: ignore
        if arm is not None:
            arm()
        flowrace(words)

    return fork_printing(work, _output(folder))


def _output(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.output")


class ForkedJob:
    """A job of the local launcher as a forked process in the group of the study's command.

    It has the part of the interface of `subprocess.Popen` that the launcher uses.
    """

    def __init__(self, command: Sequence[str], *, stdout: IO[bytes], env: dict[str, str], **_: Any) -> None:
        def work() -> None:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            with mock.patch.dict(os.environ, env):
                flowrace(command[command.index("harness.cli.main") + 1 :])

        self.pid = fork(partial(with_own_output, work))
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None and has_ended(self.pid):
            self._code = exit_code(self.pid)
        return self._code

    def wait(self) -> int:
        if self._code is None:
            self._code = exit_code(self.pid)
        return self._code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


TIMED = ("events.jsonl", "environment.json", "clock.json", "chain.jsonl", "done")
"""Files of a run with seconds, or with an entry for each start."""


def what_is_left(folder: Path) -> str:
    """Return every file of a folder as text to compare: names and hashes, and records without their seconds.

    A temporary file that remains has a name, and is a difference.
    """
    files = {
        str(file.relative_to(folder)): _digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.parent.name != "logs" and file.name != LOCK
    }
    records = [
        [record.id, record.status, events(record), record.last_step] for record in map(Record, _runs(folder))
    ]
    return json.dumps([files, records], indent=1)


def _differing(expected: str, left: str) -> str:
    """Return the files and the records that differ, by name."""
    (files, records), (other_files, other_records) = json.loads(expected), json.loads(left)
    names = sorted(name for name in files | other_files if files.get(name) != other_files.get(name))
    ids = [one[0] for one, other in zip(records, other_records, strict=False) if one != other]
    return f"files {names}, records {ids}"


def _runs(folder: Path) -> list[Path]:
    return sorted(file.parent for file in folder.rglob("spec.toml"))


def _digest(file: Path) -> str:
    """Return the hash of a file; only that it exists, if its content has times, and of lines in any order."""
    if file.name in TIMED:
        return ""
    content = file.read_bytes()
    if file.name == evaluations.EVALUATIONS:
        content = b"\n".join(sorted(content.splitlines()))
    return hashlib.sha256(content).hexdigest()
