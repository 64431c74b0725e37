"""Promise 4 for every command that writes runs: killed and run again, it leaves what an unbroken one leaves.

`python -m benchmarks.kills` does the same 220 times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.kills import ONCE, kill_all
from harness.records import evaluations
from harness.records.record import CLOCK
from harness.records.record_writer import RecordWriter
from tests.support.kills import (
    Differs,
    Scene,
    Unbroken,
    check_kill,
    eval_scene,
    import_scene,
    unbroken,
)

pytestmark = pytest.mark.usefixtures("quick_networks")


@pytest.fixture(scope="module")
def importing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Unbroken]:
    folder = tmp_path_factory.mktemp("import")
    scene = import_scene("repa", folder / "scene")
    return scene, unbroken(scene, folder)


def at(scene: Scene, instant: str, call: int) -> Scene:
    """Return a scene that is killed at one call of an instant."""
    where, _ = scene.instants[instant]
    return replace(scene, instants={instant: (where, range(call, call + 1))})


@pytest.mark.parametrize(
    ("instant", "call"),
    [
        ("in a half-written checkpoint", 0),
        ("in a temporary file", 0),
        ("in a half-written line", 0),
        # Before the spec, the last file.
        ("before a rename", 3),
    ],
)
def test_killed_import_is_repeated_to_the_same_run(
    importing: tuple[Scene, Unbroken], tmp_path: Path, instant: str, call: int
) -> None:
    scene, expected = importing
    check_kill(at(scene, instant, call), expected, instant, tmp_path / "killed", random.Random(0))


def test_file_that_a_rerun_leaves_is_a_difference(importing: tuple[Scene, Unbroken], tmp_path: Path) -> None:
    scene, expected = importing

    def untidy(out: Path) -> Sequence[object]:
        (out / "left.tmp").touch()
        return scene.words(out)

    with pytest.raises(Differs, match=r"it left other files \['left.tmp'\]"):
        check_kill(
            replace(scene, words=untidy),
            expected,
            "in a half-written line",
            tmp_path / "killed",
            random.Random(0),
        )


def test_clock_that_a_killed_run_was_writing_is_removed_by_its_next_start(tmp_path: Path) -> None:
    unfinished = tmp_path / f".{CLOCK}.tmp"
    unfinished.write_bytes(b"{")
    with RecordWriter(tmp_path):
        assert not unfinished.exists()


@pytest.mark.slow
def test_torn_line_that_a_rerun_keeps_is_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = eval_scene("image", tmp_path / "scene")
    expected = unbroken(scene, tmp_path)

    def kept(file: object) -> bytes:
        return b""

    monkeypatch.setattr(evaluations, "cut_torn_line", kept)
    with pytest.raises(Differs):
        check_kill(scene, expected, "in a half-written line", tmp_path / "killed", random.Random(0))


@pytest.mark.slow
def test_every_command_method_and_modality_ends_in_the_bits_of_an_unbroken_one() -> None:
    """40 kills: runs and extensions of five methods in three modalities, studies, imports and rollouts."""
    found = kill_all(seed=1, kills=ONCE, note=print)
    assert found["kills"] == 40
    assert [row["differences"] for row in found["scenes"] if row["differences"]] == []
