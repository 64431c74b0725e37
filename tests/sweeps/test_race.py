"""Races that stop when their claims are decided, with runs whose curves are known."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.errors import UserError
from harness.records.study_folder import StudyFolder
from reports.audit.audit import Audit
from reports.audit.judge_files import judge_claims
from reports.audit.look_log import read_looks, record_look
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study_folder import study_lock
from sweeps.race.coordinator import Course, run_race
from sweeps.race.expected import expected_ends
from sweeps.race.picture import looks_picture
from sweeps.race.race_file import Race, read_race
from tests.reports.synthetic import METRIC, power_law, write_run

SPEEDS = {"flow": 1.0, "repa": 1.42, "sra": 1.0}
RACE = """
[study]
name = "tiny"
base = "digits"

[study.axes]
seed = [0]
"method.name" = ["flow", "repa", "sra"]
"""
CLAIM = """
[[claim]]
name = "{name}"
candidate = "{name}"
baseline = "flow"
metric = "fd:local"
target = 40.0
factor = 1.3
[claim.sequential]
max_pairs = {pairs}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a race of one claim, which is true by far."""
    return write_file(tmp_path, "repa")


def write_file(folder: Path, *arms: str, pairs: int = 6) -> Path:
    path = folder / "claim.toml"
    path.write_text(RACE + "".join(CLAIM.format(name=arm, pairs=pairs) for arm in arms))
    return path


class Trainer:
    """Writes the records of runs, and counts them by method."""

    def __init__(
        self,
        directory: Path,
        noise: float = 0.06,
        die_after: int | None = None,
        started: float | None = None,
    ) -> None:
        self.directory, self.noise, self.die_after = directory, noise, die_after
        self.environment = {} if started is None else {"started": started}
        self.trained: list[tuple[str, int]] = []

    def __call__(self, runs: Sequence[PlannedRun]) -> tuple[Mapping[str, str], bool]:
        for run in runs:
            if (self.directory / run.id).exists():
                continue
            if self.die_after is not None and len(self.trained) >= self.die_after:
                raise KeyboardInterrupt
            method, seed = run.spec.method.name, run.spec.seed
            self.trained.append((method, seed))
            rng = np.random.default_rng([seed, *method.encode()])
            speed = SPEEDS[method] * math.exp(self.noise * rng.normal())
            scale = 1000.0 * speed**-0.5
            about = self.environment
            write_run(self.directory / run.id, method, seed, metric=power_law(scale, 0.5), environment=about)
        return {}, False

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.trained)


def raced(file: Path, trainer: Trainer) -> tuple[Race, Course, list[str]]:
    race, lines = read_race(file), []
    with study_lock(trainer.directory):
        course = run_race(
            race, make_plan(race.study, trainer.directory), trainer.directory, trainer, lines.append
        )
    return race, course, lines


def judged(file: Path, directory: Path) -> list[Audit]:
    return judge_claims([file], [str(directory)])


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


def test_replaced_run_makes_the_adjusted_verdict_inconclusive_too(tmp_path: Path) -> None:
    file = write_file(tmp_path, "repa", "sra", pairs=8)
    trainer = Trainer(tmp_path / "runs", noise=0.03)
    raced(file, trainer)
    run = next(
        path
        for path in trainer.directory.glob("????????????")
        if "seed = 1" in (path / "spec.toml").read_text()
    )
    method = next(name for name in SPEEDS if f'"{name}"' in (run / "spec.toml").read_text())
    shutil.rmtree(run)
    write_run(run, method, 1, metric=power_law(500.0, 0.5))
    assert "inconclusive" in {audit.adjusted for audit in judged(file, trainer.directory)}


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


# Ten ways to cheat, each detected and named.


def cheat(file: Path, directory: Path, old: str, new: str) -> Audit:
    file.write_text(file.read_text().replace(old, new))
    return judged(file, directory)[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the file and the runs of a finished race."""
    folder = tmp_path_factory.mktemp("race")
    raced(write_file(folder, "repa"), Trainer(folder / "runs"))
    return folder


@pytest.fixture
def race(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return the file and the folder of a copy of that race."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "claim.toml", tmp_path / "runs"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("max_pairs = 6", "max_pairs = 4", id="another-max-pairs"),
        pytest.param("max_pairs = 6", 'max_pairs = 6\nkind = "anytime"\ng = 1.0', id="another-g"),
        pytest.param("target = 40.0", "target = 45.0", id="another-target"),
        pytest.param("factor = 1.3", "factor = 1.1", id="another-factor"),
    ],
)
def test_claim_changed_after_a_look_is_named(race: tuple[Path, Path], old: str, new: str) -> None:
    found = cheat(*race, old, new)
    assert found.verdict == "inconclusive" and "another version of this claim" in found.reasons[0].text
    assert found.standing == "changed since it was registered"


def test_renamed_arm_is_named(race: tuple[Path, Path]) -> None:
    """The runs of another arm under the name of the claim."""
    file, directory = race
    for run in directory.glob("????????????"):
        spec = run / "spec.toml"
        spec.write_text(spec.read_text().replace('"repa"', '"sra"'))
    found = cheat(file, directory, 'candidate = "repa"', 'candidate = "sra"')
    assert found.verdict == "inconclusive" and found.standing == "changed since it was registered"


def test_claim_added_after_looks_is_named(race: tuple[Path, Path]) -> None:
    file, directory = race
    more = CLAIM.format(name="repa", pairs=6).replace('name = "repa"', 'name = "second"', 1)
    file.write_text(file.read_text() + more.replace("target = 40.0", "target = 60.0"))
    found = judged(file, directory)[1]
    assert found.verdict == "inconclusive" and "chosen after looks" in found.reasons[0].text


def test_claim_registered_again_is_not_before_its_runs(race: tuple[Path, Path]) -> None:
    file, directory = race
    file.with_name("register.jsonl").unlink()
    found = cheat(file, directory, "factor = 1.3", "factor = 1.2")
    assert found.standing == "not registered" and found.verdict == "inconclusive"


def test_dropped_and_excluded_runs_are_named(race: tuple[Path, Path]) -> None:
    """A seed of both arms, or the failed run of one."""
    file, directory = race
    run = next(
        path for path in directory.glob("????????????") if "seed = 1" in (path / "spec.toml").read_text()
    )
    shutil.rmtree(run)
    [found] = judged(file, directory)
    assert found.verdict == "inconclusive"
    assert any(
        reason.name == "looks" and "seed 1, which is missing" in reason.text for reason in found.reasons
    )


def test_run_trained_again_is_named(race: tuple[Path, Path]) -> None:
    file, directory = race
    run = next(
        path for path in directory.glob("????????????") if "seed = 2" in (path / "spec.toml").read_text()
    )
    method = "repa" if '"repa"' in (run / "spec.toml").read_text() else "flow"
    shutil.rmtree(run)
    write_run(run, method, 2, metric=power_law(700.0, 0.5))
    [found] = judged(file, directory)
    assert found.verdict == "inconclusive" and "other times of seed 2" in found.reasons[0].text


def test_mixed_protocols_are_named(race: tuple[Path, Path]) -> None:
    file, directory = race
    run = next(
        path for path in directory.glob("????????????") if '"repa"' in (path / "spec.toml").read_text()
    )
    events = run / "events.jsonl"
    events.write_text(events.read_text().replace("9cece13e0f6d", "0123456789ab"))
    [found] = judged(file, directory)
    assert found.verdict == "inconclusive" and any(own.name == "protocol" for own in found.reasons)


@pytest.mark.parametrize("name", ["register.jsonl", "looks.jsonl"])
def test_edited_log_is_refused(race: tuple[Path, Path], name: str) -> None:
    file, directory = race
    log = file.with_name(name) if name == "register.jsonl" else directory / name
    text = log.read_text()
    log.write_text(text.replace("repa", "other", 1) if name == "register.jsonl" else text.replace("40", "41"))
    if name == "looks.jsonl":
        rows = text.splitlines()
        log.write_text("\n".join([rows[0].replace('"look": 3', '"look": 2'), *rows[1:], rows[0]]) + "\n")
    with pytest.raises(UserError, match="was altered"):
        judged(file, directory)


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


def test_folder_of_another_race_or_study_is_refused(race: tuple[Path, Path]) -> None:
    file, directory = race
    file.write_text(file.read_text().replace("factor = 1.3", "factor = 1.2"))
    trainer = Trainer(directory)
    with pytest.raises(UserError, match=r"holds the looks of repa .*choose another --out"):
        raced(file, trainer)
    forget_looks(directory)
    other = '"flow", "repa"]\n[study.set]\n"train.batch_size" = 8'
    file.write_text(file.read_text().replace('"flow", "repa", "sra"]', other))
    with pytest.raises(UserError, match=r"runs that the race does not plan; choose another --out"):
        raced(file, trainer)
    assert trainer.trained == []


def forget_looks(directory: Path) -> None:
    """Remove the looks, and the end of their log from the plan."""
    folder = StudyFolder(directory)
    plan = json.loads(folder.plan_file.read_text())
    folder.plan_file.write_text(json.dumps({key: value for key, value in plan.items() if key != "looks"}))
    folder.looks_file.unlink()


@pytest.mark.parametrize("kept", [0, 1, None], ids=["all-but-none", "all-but-one", "removed"])
def test_log_that_was_cut_is_named(race: tuple[Path, Path], kept: int | None) -> None:
    """The plan has the hash of the last look, so that the log cannot lose its end in silence."""
    file, directory = race
    log = StudyFolder(directory).looks_file
    if kept is None:
        log.unlink()
    else:
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:kept]))
    [found] = judged(file, directory)
    assert found.verdict == "inconclusive"
    assert any("looks.jsonl was cut or removed" in reason.text for reason in found.reasons)
    with pytest.raises(UserError, match=r"was cut or removed: it has .* restore the file"):
        raced(file, Trainer(directory))


def test_replayed_look_is_named(race: tuple[Path, Path]) -> None:
    """The last look is cut off, its runs are trained again, and the look is taken again."""
    file, directory = race
    folder = StudyFolder(directory)
    log = folder.looks_file.read_bytes()
    folder.looks_file.write_bytes(b"".join(log.splitlines(keepends=True)[:-1]))
    last = read_looks(directory)[-1]["look"]
    for run in (run for run in make_plan(read_race(file).study).runs if run.spec.seed == last):
        if (directory / run.id).exists():
            shutil.rmtree(directory / run.id)
            write_run(directory / run.id, run.spec.method.name, last, metric=power_law(700.0, 0.5))
    audits = judge_claims([file], [str(directory)])
    record_look(directory, last + 1, [replace(audits[0], verdict="supported")])
    [found] = judged(file, directory)
    assert found.verdict == "inconclusive"
    assert any("is not the one that plan.json records" in reason.text for reason in found.reasons)


def test_look_that_a_killed_race_left_after_its_plan_is_no_fault(race: tuple[Path, Path]) -> None:
    file, directory = race
    folder = StudyFolder(directory)
    plan = json.loads(folder.plan_file.read_text())
    first = folder.looks_file.read_bytes().splitlines()[0]
    plan["looks"] = {"count": 1, "head": hashlib.sha256(first).hexdigest()}
    folder.plan_file.write_text(json.dumps(plan))
    assert judged(file, directory)[0].verdict == "supported"


# More pairs than were planned.

ANYTIME = 'kind = "anytime"\n'


def write_close_race(folder: Path, pairs: int, kind: str = "") -> Path:
    """Write a race that few pairs leave undecided."""
    path = write_file(folder, "repa", pairs=pairs)
    path.write_text(path.read_text() + kind)
    return path


def test_planned_pairs_of_an_anytime_claim_may_be_raised(tmp_path: Path) -> None:
    """The looks so far count, and the race ends as if it had planned all pairs from the start."""
    folder, once = tmp_path / "raised", tmp_path / "once"
    for path in (folder, once):
        path.mkdir()
    _, first, _ = raced(write_close_race(folder, 4, ANYTIME), Trainer(folder / "runs", noise=0.07))
    assert len(first.looks) == 2 and not first.looks[-1]["claims"][0]["ended"]
    file = write_close_race(folder, 8, ANYTIME)
    _, course, lines = raced(file, Trainer(folder / "runs", noise=0.07))
    _, whole, _ = raced(write_close_race(once, 8, ANYTIME), Trainer(once / "runs", noise=0.07))
    assert any("max_pairs was raised from 4 to 8" in line for line in lines)
    ends = [[seen["speedup"] for seen in row["claims"]] for row in course.looks]
    assert ends == [[seen["speedup"] for seen in row["claims"]] for row in whole.looks] and len(ends) > 2
    [found] = judged(file, folder / "runs")
    assert found.verdict == course.looks[-1]["claims"][0]["verdict"] == "supported"
    assert any("max_pairs was raised from 4 to 8" in note for note in found.notes)


def test_planned_pairs_of_a_group_claim_may_not_be_raised(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "runs", noise=0.2)
    raced(write_close_race(tmp_path, 3), trainer)
    file = write_close_race(tmp_path, 6)
    with pytest.raises(UserError, match=r'max_pairs was 3, now 6; only kind = "anytime" may be raised'):
        raced(file, trainer)
    [found] = judged(file, trainer.directory)
    assert found.verdict == "inconclusive" and "max_pairs was 3, now 6" in found.reasons[0].text


def test_planned_pairs_may_not_be_lowered(tmp_path: Path) -> None:
    """Pairs that were seen would no longer count."""
    trainer = Trainer(tmp_path / "runs", noise=0.2)
    raced(write_close_race(tmp_path, 5, ANYTIME), trainer)
    [found] = judged(write_close_race(tmp_path, 3, ANYTIME), trainer.directory)
    assert found.verdict == "inconclusive" and "max_pairs was 5, now 3" in found.reasons[0].text


# When a claim was registered, and what a program reads.


def test_claim_registered_after_runs_is_named_by_the_race(finished: Path, tmp_path: Path) -> None:
    file = write_file(tmp_path, "repa")
    trainer = Trainer(tmp_path / "runs", started=1_000_000_000_000.0)
    race = read_race(file)
    trainer(make_plan(race.study).runs)
    _, course, lines = raced(file, trainer)
    assert course.registered == {"repa": "post hoc"}
    assert any("claim repa: post hoc: a run had finished before" in line for line in lines)
    _, again, lines = raced(file, trainer)
    assert again.registered == {"repa": "post hoc"}


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


def test_claim_changed_while_its_race_runs_is_refused(file: Path, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "runs")
    race = read_race(file)

    def train(runs: Sequence[PlannedRun]) -> tuple[Mapping[str, str], bool]:
        file.write_text(file.read_text().replace("factor = 1.3", "factor = 1.1"))
        return trainer(runs)

    with pytest.raises(UserError, match="was changed while its race ran"):
        run_race(race, make_plan(race.study, trainer.directory), trainer.directory, train, lambda _: None)
    assert read_looks(trainer.directory) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda seen: seen.pop("speedup"),
        lambda seen: seen.update(times={"a": [1]}),
        lambda seen: seen.update(factor=["x", None]),
        lambda seen: seen.update(name="\x1b[2J"),
        lambda seen: seen.update(speedup=[-1.0, 0.5, 2.0]),
    ],
)
def test_malformed_look_of_a_stranger_is_one_sentence(race: tuple[Path, Path], change: Any) -> None:
    _, directory = race
    row = json.loads(StudyFolder(directory).looks_file.read_text().splitlines()[0])
    change(row["claims"][0])
    StudyFolder(directory).looks_file.write_text(json.dumps(row) + "\n")
    result = CliRunner().invoke(cli, ["status", str(directory)])
    assert isinstance(result.exception, UserError) and "was altered" in str(result.exception)


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
    file.write_text(CLAIM.format(name="repa", pairs=6))
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
