"""Races that stop when their claims are decided, with runs whose curves are known."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.errors import UserError
from harness.records.study_folder import StudyFolder
from reports.audit.look_log import read_looks, record_look
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study_folder import study_lock
from sweeps.race.coordinator import run_race
from sweeps.race.expected import expected_ends
from sweeps.race.picture import looks_picture
from sweeps.race.race_file import read_race
from tests.reports.synthetic import METRIC, write_run
from tests.sweeps.races import Trainer, claim_text, judged, raced, sequential, write_file


def test_race_stops_at_the_look_that_decides(file: Path, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "runs")
    _, course, lines = raced(file, trainer)
    last = course.looks[-1]
    assert last["claims"][0]["ended"] == "supported" and 3 <= last["look"] < 6
    assert trainer.count("flow") == trainer.count("repa") == last["look"] and trainer.count("sra") == 0
    assert lines[-1].endswith("supported") and "registered claim repa" in lines[0]
    [audit] = judged(file, trainer.directory)
    assert audit.verdict == "supported" and audit.standing == "registered, times of runs unknown"
    assert audit.looks[-1].n == last["look"]


def test_race_that_is_run_again_starts_nothing(race: tuple[Path, Path]) -> None:
    file, directory = race
    log = StudyFolder(directory).looks_file.read_bytes()
    trainer = Trainer(directory)
    _, course, _ = raced(file, trainer)
    assert trainer.trained == [] and StudyFolder(directory).looks_file.read_bytes() == log
    assert list(course.looks) == read_looks(directory)


@pytest.mark.parametrize("die_after", [1, 6, 7])
def test_killed_race_takes_the_same_looks(finished: Path, file: Path, tmp_path: Path, die_after: int) -> None:
    looks = StudyFolder(finished / "runs").looks_file.read_bytes()
    killed = Trainer(tmp_path / "again", die_after=die_after)
    with pytest.raises(KeyboardInterrupt):
        raced(file, killed)
    # What a kill in the middle of a line leaves behind.
    with open(StudyFolder(killed.directory).looks_file, "ab") as torn:
        torn.write(b'{"look": 9, "cla')
    killed.die_after = None
    raced(file, killed)
    assert StudyFolder(killed.directory).looks_file.read_bytes() == looks


def test_decided_arm_starts_no_more_runs(tmp_path: Path) -> None:
    """The other arm is refuted or undecided later, and its baseline goes on with it."""
    file = write_file(tmp_path, "repa", "sra", pairs=8)
    trainer = Trainer(tmp_path / "runs", noise=0.03)
    _, course, _ = raced(file, trainer)
    ends = {
        seen["name"]: row["look"] for row in reversed(course.looks) for seen in row["claims"] if seen["ended"]
    }
    assert trainer.count("repa") == ends["repa"] and trainer.count("sra") == ends["sra"]
    assert trainer.count("flow") == max(ends.values())
    assert {audit.claim.name: audit.adjusted for audit in judged(file, trainer.directory)} == {
        "repa": "supported",
        "sra": "refuted",
    }


def test_lost_run_is_continued_before_the_look(file: Path, finished: Path, tmp_path: Path) -> None:
    """A process that ended without an end of its training is no bound."""
    trainer = Trainer(tmp_path / "runs")

    def train(runs: Sequence[PlannedRun]) -> tuple[Mapping[str, str], bool]:
        return trainer(runs[:-1])[0] | {runs[-1].id: "out of memory"}, False

    race = read_race(file)
    plan = make_plan(race.study, trainer.directory)
    course = run_race(race, plan, trainer.directory, train, lambda _: None)
    assert course.lost and course.looks == () and read_looks(trainer.directory) == []
    raced(file, trainer)
    looks = StudyFolder(trainer.directory).looks_file.read_bytes()
    assert looks == StudyFolder(finished / "runs").looks_file.read_bytes()


def test_run_whose_loss_diverged_is_a_bound(file: Path, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "runs")

    def train(runs: Sequence[PlannedRun]) -> tuple[Mapping[str, str], bool]:
        path = trainer.directory / runs[0].id
        if not path.exists():
            write_run(path, runs[0].spec.method.name, 0, grid=range(100, 301, 100), status="failed")
        return trainer(runs)

    race = read_race(file)
    course = run_race(
        race, make_plan(race.study, trainer.directory), trainer.directory, train, lambda _: None
    )
    assert len(course.looks) == 4
    assert course.looks[0]["claims"][0]["times"]["0"][0] == [300.0, "right"]


def test_second_coordinator_is_refused(file: Path, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "runs")
    with study_lock(trainer.directory), pytest.raises(UserError, match="is in use by"):
        raced(file, trainer)


def test_precondition_that_no_pair_mends_ends_the_race(file: Path, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "runs")
    file.write_text(file.read_text().replace("target = 40.0", "target = 0.5"))
    _, course, lines = raced(file, trainer)
    assert len(course.looks) == 1 and "inconclusive: target" in lines[-1]


def test_futile_race_stops(tmp_path: Path) -> None:
    file = write_file(tmp_path, "repa", pairs=6)
    text = file.read_text().replace("factor = 1.3", "factor = 1.42")
    file.write_text(text.replace("max_pairs = 6", "max_pairs = 6\nfutility = 0.99"))
    _, course, _ = raced(file, Trainer(tmp_path / "runs", noise=0.1))
    assert course.looks[-1]["claims"][0]["ended"] == "futile"


def test_claim_that_has_ended_stays_so(tmp_path: Path) -> None:
    """Also if Holm's method leaves it more of the error probability at a later look."""
    file = write_file(tmp_path, "repa", pairs=6)
    text = file.read_text().replace("factor = 1.3", "factor = 1.42")
    file.write_text(text.replace("max_pairs = 6", "max_pairs = 6\nfutility = 0.99"))
    trainer = Trainer(tmp_path / "runs", noise=0.1)
    _, course, _ = raced(file, trainer)
    last = course.looks[-1]["look"]
    open_again = [replace(audit, prospects={}) for audit in judged(file, trainer.directory)]
    assert record_look(trainer.directory, last + 1, open_again)["claims"][0]["ended"] == "futile"


def test_family_looks_at_the_level_that_holm_leaves(tmp_path: Path) -> None:
    """Every look shows the pairs that it counts, and records their times."""
    file = write_file(tmp_path, "repa", "sra", pairs=8)
    trainer = Trainer(tmp_path / "runs")
    _, course, _ = raced(file, trainer)
    for row in course.looks:
        for seen in row["claims"]:
            if not seen["ended"]:
                assert seen["n"] == row["look"] and len(seen["times"]) == row["look"]
    assert all(audit.verdict == audit.adjusted for audit in judged(file, trainer.directory))


@pytest.mark.parametrize("case", ["stopped", "lost", "refused"])
def test_race_that_does_not_end_prints_json(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    out = tmp_path / "runs"
    trainer = Trainer(out)

    def train(runs: Sequence[PlannedRun], *_: object) -> tuple[Mapping[str, str], bool]:
        trainer(runs[:1])
        return {}, case == "stopped"

    monkeypatch.setattr("sweeps.cli.race.run_all", train)
    if case == "refused":
        file.write_text(file.read_text().replace('candidate = "repa"', 'candidate = "rapa"'))
    words = ["race", str(file), "--out", str(out), "--no-track", "--no-report", "--json"]
    result = CliRunner().invoke(cli, words)
    found = json.loads(result.stdout)
    if case == "refused":
        assert isinstance(result.exception, UserError) and "unknown arm" in found["refused"]
    else:
        assert result.exit_code == {"stopped": 130, "lost": 1}[case]
        assert found[case] is True and found["looks"] == []
        assert sum(run["status"] == "done" for run in found["runs"]) == 1


# The file, what is expected, and the picture.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[study]", "[studie]", "unknown table 'studie'.*Did you mean 'study'"),
        ('"repa", "sra"]', '"sra"]', "unknown arm of claim repa 'repa'"),
        ("[claim.sequential]\nmax_pairs = 6", "", "has no \\[claim.sequential\\]"),
        ("seed = [0]", 'seed = [0]\n"train.batch_size" = [8, 16]', "also varies train.batch_size"),
    ],
)
def test_invalid_race_files_are_rejected(file: Path, old: str, new: str, message: str) -> None:
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        read_race(file)


def test_file_without_a_study_is_rejected(file: Path) -> None:
    file.write_text(claim_text("repa", more=sequential()))
    with pytest.raises(UserError, match="a race needs a study"):
        read_race(file)


def test_registered_seeds_replace_those_of_the_study(file: Path) -> None:
    race = read_race(file)
    assert race.study.axes["seed"] == (0, 1, 2, 3, 4, 5)
    assert race.study.target.value == 40.0 and race.study.baseline == "flow"
    assert any("sra" in note for note in race.notes)


def test_expected_pairs_of_a_clear_effect_are_the_published_ones(tmp_path: Path) -> None:
    """An effect of 3 standard deviations ends a race of 10 pairs after 4.2 on average."""
    file = write_file(tmp_path, "repa", pairs=10)
    spread = math.log(1.3) / 3
    none = next(one for one in expected_ends(read_race(file), spread) if one.assumed == "none")
    assert none.pairs == pytest.approx(4.2, abs=0.1) and none.decided > 0.99


def test_picture_marks_estimate_claim_and_ends(race: tuple[Path, Path]) -> None:
    lines = looks_picture(read_looks(race[1]))
    assert lines[0] == "repa: at least 1.3x" and lines[-1].endswith("supported")
    bar = lines[-1][10:54]
    assert bar.index("|") < bar.index("[") < bar.index("o") < bar.index("]")
    assert json.loads(json.dumps(read_looks(race[1])[0]))["claims"][0]["arms"] == ["flow", "repa"]


def test_target_metric_is_that_of_the_records(file: Path) -> None:
    assert METRIC == "fd:local" == read_race(file).claims[0].metric
