"""Races whose runs end once they have crossed their target for good, with runs whose curves are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.errors import UserError
from harness.files.files import write_atomic
from harness.records.early_end import EarlyEnd, EndRule
from harness.records.record import DONE, Record
from harness.records.study_folder import StudyFolder
from reports.audit.audit import Audit
from reports.audit.inputs.claim import claim_hash
from reports.audit.judge_files import judge_claims
from reports.audit.words import notes
from sweeps.launch.base import Job
from sweeps.launch.runner import StudyRunner
from sweeps.plan.early_ends import spared_steps
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.run_state import TO_EXTEND, read_state
from sweeps.plan.status import read_status
from sweeps.race.coordinator import Course, run_race
from sweeps.race.race_file import read_race
from tests.reports.synthetic import power_law, write_run
from tests.sweeps.races import claim_text, sequential

SPEEDS = {"flow": 1.0, "repa": 1.5, "sra": 0.95, "dispersive": 0.1}
"""The last arm never reaches the target, 40, within 2000 steps."""
RACE = """
[study]
name = "tiny"
base = "digits"
[study.axes]
"method.name" = ["flow", "repa", "sra", "dispersive"]
[study.set]
"train.steps" = 2000
"eval.every" = 100
"train.batch_size" = 64
"""
DECIDED = 'until = "decided"\npatience = 3\n'


def write_file(folder: Path, *arms: str, until: str = DECIDED, axis: str = "steps") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "claim.toml"
    more = f'axis = "{axis}"\n{sequential()}{until}'
    path.write_text(RACE + "".join(claim_text(arm, factor=1.2, more=more) for arm in arms))
    return path


class Trainer:
    """Writes the records of runs, which end early by their rule as the training loop would end them.

    Evaluations have noise of 2 %, so that curves rise now and then.
    """

    def __init__(self, directory: Path, *, obeys: bool = True) -> None:
        self.directory, self.obeys = directory, obeys
        self.trained: list[PlannedRun] = []

    def __call__(self, runs: Sequence[PlannedRun]) -> tuple[Mapping[str, str], bool]:
        for run in runs:
            if read_state(run, self.directory).status != "done":
                self.trained.append(run)
                self._write(run)
        return {}, False

    def _write(self, run: PlannedRun) -> None:
        grid = range(100, 2001, 100)
        curve = noisy(run.spec.method.name, run.spec.seed)
        values = [(step, curve(step)) for step in grid]
        end = run.end.end({"fd:local": values}) if run.end and self.obeys else None
        last = 2000 if end is None else end
        about = {"set_": {"train.steps": 2000}, "metric": curve, "grid": [s for s in grid if s <= last]}
        # Candidates cost more FLOPs a step, so that the budgets of arms differ.
        flops = 1_000_000 if run.spec.method.name == "flow" else 1_100_000
        path = self.directory / run.id
        record = write_run(path, run.spec.method.name, run.spec.seed, flops=flops, **about)
        if end is not None and end < 2000 and run.end:
            row = EarlyEnd(end, 2000, str(run.end), 64 * 2000, flops * 2000).row()
            write_atomic(record.path / DONE, json.dumps({"ended": row}).encode())


def noisy(method: str, seed: int) -> Callable[[float], float]:
    rng = np.random.default_rng([seed, *method.encode()])
    curve = power_law(1000.0 * (SPEEDS[method] * math.exp(0.05 * rng.normal())) ** -0.5, 0.5)
    noise = dict(zip(range(100, 2001, 100), np.exp(0.02 * rng.normal(size=20)), strict=True))
    return lambda step: float(curve(step) * noise[int(step)])


def raced(file: Path, trainer: Trainer) -> Course:
    race = read_race(file)
    plan = make_plan(race.study, trainer.directory)
    return run_race(race, plan, trainer.directory, trainer, lambda _: None)


def judged(file: Path, directory: Path) -> dict[str, Audit]:
    return {audit.claim.name: audit for audit in judge_claims([file], [str(directory)])}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Course]:
    folder = tmp_path_factory.mktemp("ended")
    file = write_file(folder, "repa", "sra", "dispersive")
    return file, folder / "runs", raced(file, Trainer(folder / "runs"))


@pytest.mark.parametrize("axis", ["steps", pytest.param("flops", marks=pytest.mark.slow)])
def test_race_of_early_ends_has_the_looks_of_a_race_without_them(tmp_path: Path, axis: str) -> None:
    """The times, horizons and intervals of the same claim are equal, whether or not its runs ended."""
    courses = []
    for name, obeys in (("ended", True), ("full", False)):
        file = write_file(tmp_path / name, "repa", "sra", "dispersive", axis=axis)
        courses.append(raced(file, Trainer(tmp_path / name / "runs", obeys=obeys)))
    assert courses[0].looks == courses[1].looks
    assert spared_steps(courses[0].runs, tmp_path / "ended" / "runs") > 0.1
    assert spared_steps(courses[1].runs, tmp_path / "full" / "runs") == 0


@pytest.mark.slow
def test_verdicts_are_those_of_runs_to_their_last_step(
    tmp_path: Path, ended: tuple[Path, Path, Course]
) -> None:
    """A claim with `until = "decided"` against one without it, on the same curves."""
    plain = write_file(tmp_path, "repa", "sra", "dispersive", until="")
    raced(plain, Trainer(tmp_path / "runs"))
    early, full = judged(*ended[:2]), judged(plain, tmp_path / "runs")
    assert (
        {name: one.adjusted for name, one in early.items()}
        == {name: one.adjusted for name, one in full.items()}
        == {"repa": "supported", "sra": "refuted", "dispersive": "refuted"}
    )
    for name in early:
        one, two = early[name].gain, full[name].gain
        assert one and two and one.n == two.n and one.factor == pytest.approx(two.factor, rel=0.02)


def test_censored_runs_go_to_the_horizon(ended: tuple[Path, Path, Course]) -> None:
    _, directory, course = ended
    records = {run.id: (run.spec.method.name, Record(directory / run.id)) for run in course.runs}
    for method, record in records.values():
        assert (record.early_end is None) == (method == "dispersive")
        assert record.last_step == 2000 or method != "dispersive"
    [flow] = [audit for name, audit in judged(*ended[:2]).items() if name == "dispersive"]
    times = flow.times()
    assert {(time.value, time.censored) for time in times["dispersive"]} == {(2000.0, "right")}
    assert {time.censored for time in times["flow"]} == {None}


def test_verdict_is_the_same_after_runs_were_continued(tmp_path: Path) -> None:
    file = write_file(tmp_path, "repa")
    trainer = Trainer(tmp_path / "runs")
    course = raced(file, trainer)
    before = judged(file, trainer.directory)["repa"]
    for run in course.runs:
        Trainer(trainer.directory, obeys=False)._write(run)
    after = judged(file, trainer.directory)["repa"]
    assert before.looks == after.looks and before.verdict == after.verdict == "supported"


def test_shared_baseline_ends_with_its_lowest_target(tmp_path: Path) -> None:
    file = write_file(tmp_path, "repa", "sra")
    file.write_text(file.read_text().replace("target = 40.0", "target = 35.0", 1))
    race = read_race(file)
    assert race.end_of("flow") == race.end_of("repa") == EndRule((("fd:local", 35.0),), 3)
    assert race.end_of("sra") == EndRule((("fd:local", 40.0),), 3)


@pytest.mark.parametrize("relative", ['at = "flow@1900"', "share_of_final = 0.9"])
def test_report_of_two_targets_needs_no_run_to_its_last_step(tmp_path: Path, relative: str) -> None:
    """The study's own target is that of its runs' ends, which the race does not train."""
    from reports.analysis.report import read_report

    file = write_file(tmp_path, "repa", "sra")
    text = file.read_text().replace("target = 40.0", "target = 45.0", 1)
    file.write_text(text.replace("[study.set]", f"[study.target]\n{relative}\n[study.set]"))
    trainer = Trainer(tmp_path / "runs")
    raced(file, trainer)
    assert read_report([trainer.directory]).race.target == 45.0
    assert [rule.value for rule in StudyFolder(trainer.directory).settings.rules_of("fd:local")] == [45, 40]


def test_relative_target_is_dropped_if_claims_have_several_metrics(tmp_path: Path) -> None:
    file = write_file(tmp_path, "repa", "sra")
    text = file.read_text().replace('metric = "fd:local"', 'metric = "kd:local"', 1)
    table = '[study.target]\nmetric = "fd:local"\nshare_of_final = 0.9\n[study.set]'
    file.write_text(text.replace("[study.set]", table))
    target = read_race(file).study.target
    assert target.metric == "fd:local" and target.share_of_final is None and target.values is None


def test_run_that_ended_by_another_rule_is_to_extend(ended: tuple[Path, Path, Course]) -> None:
    _, directory, course = ended
    run = next(one for one in course.runs if one.spec.method.name == "flow")
    lower = EndRule((("fd:local", 1.0),), 3)
    assert read_state(run, directory).status == "done"
    assert read_state(replace(run, end=None), directory).status == TO_EXTEND
    assert read_state(replace(run, end=lower), directory).status == TO_EXTEND


def test_launched_command_has_the_rule(ended: tuple[Path, Path, Course], tmp_path: Path) -> None:
    class Engine:
        active, stopped_by = False, None

        def __init__(self) -> None:
            self.jobs: list[Job] = []

        def submit(self, job: Job) -> None:
            self.jobs.append(job)

        def holds(self, _: str) -> bool:
            return False

    run, engine = ended[2].runs[0], Engine()
    StudyRunner([run], tmp_path, engine, None, lambda _: None).run()  # pyright: ignore[reportArgumentType]
    words = engine.jobs[0].command
    assert words[-6:] == ("--end-when", "fd:local<=40.0", "--patience", "3", "--margin", "0.0")


def test_status_of_an_ended_run_has_its_reason(ended: tuple[Path, Path, Course]) -> None:
    found = read_status(ended[1])
    assert found["counts"] == {"done": len(found["runs"])}
    reasons = [run["ended"] for run in found["runs"] if "ended" in run]
    assert reasons and all("of 2000: fd:local <= 40 in 3 evaluations in a row" in text for text in reasons)


# What other claims and reports may ask of runs that ended early.


@pytest.mark.parametrize(
    ("until", "target", "needs"),
    [
        ("", "40.0", "step 2000"),
        (DECIDED, "20.0", "fd:local <= 20 in 3 evaluations"),
        (DECIDED.replace("3", "9"), "40.0", "fd:local <= 40 in 9 evaluations"),
    ],
    ids=["until-the-end", "lower-target", "more-patience"],
)
def test_claim_that_needs_more_of_a_run_is_inconclusive(
    ended: tuple[Path, Path, Course], tmp_path: Path, until: str, target: str, needs: str
) -> None:
    file = write_file(tmp_path, "repa", until=until)
    file.write_text(file.read_text().replace("target = 40.0", f"target = {target}"))
    found = judged(file, ended[1])["repa"]
    own = [reason.text for reason in found.reasons if reason.name == "ended"]
    assert found.verdict == "inconclusive" and own and needs in own[0] and "flowrace extend" in own[0]


def test_claim_judged_once_does_not_accept_early_ends(
    ended: tuple[Path, Path, Course], tmp_path: Path
) -> None:
    file = write_file(tmp_path, "repa", until="")
    file.write_text(file.read_text().replace("[claim.sequential]\nmax_pairs = 6", ""))
    assert any(reason.name == "ended" for reason in judged(file, ended[1])["repa"].reasons)


def test_report_has_no_final_value_of_early_ends(ended: tuple[Path, Path, Course], tmp_path: Path) -> None:
    from reports.analysis.report import read_report

    found = read_report([ended[1]], target=40.0)
    assert {final.arm for final in found.final_values} == {"dispersive"}
    assert found.race.horizons["steps"] == 2000
    assert found.race.axes == ("steps", "images", "flops") == tuple(found.race.horizons)
    assert any("so the seconds to their last step are unknown" in note for note in found.caveats)
    [about] = [text for text in found.caveats if "no final value" in text]
    assert "ended early" in about and "reached the target" in about
    rows = [row for row in found.run_rows if row["method"] == "flow"]
    assert all(row["final"] is None and row["reason"].startswith("ended at step") for row in rows)
    with pytest.raises(UserError, match=r"target 90% needs the runs of flow to their last step"):
        read_report([ended[1]], target="90%")


def test_audit_of_early_ends_has_no_number_in_seconds(
    ended: tuple[Path, Path, Course], tmp_path: Path
) -> None:
    found = judged(*ended[:2])["repa"]
    assert found.verdict == "supported" and set(found.gains or ()) == {"steps", "images", "flops"}
    assert any(note.startswith("Seconds are not compared: ") for note in notes(found))
    in_seconds = judged(write_file(tmp_path, "repa", until="", axis="seconds"), ended[1])["repa"]
    assert in_seconds.verdict == "inconclusive" and in_seconds.gains is None
    assert any(reason.name == "ended" for reason in in_seconds.reasons)


@pytest.mark.slow
def test_mirrored_early_end_keeps_its_budget(
    ended: tuple[Path, Path, Course], new_store: Callable[[Path], str], tmp_path: Path
) -> None:
    from harness.records.mlflow_mirror import mirror

    file, directory, _ = ended
    store = new_store(tmp_path / "mlflow.db")
    mirror(StudyFolder(directory).records, uri=store, study="tiny")
    here, there = (
        judged(file, directory),
        {audit.claim.name: audit for audit in judge_claims([file], [store])},
    )
    assert {name: one.looks for name, one in here.items()} == {name: one.looks for name, one in there.items()}


# The claim and the plan.


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("patience = 3", "patience = 0", "greater than or equal to 1"),
        ('until = "decided"\npatience = 3', "patience = 4", 'patience has no effect with until = "end"'),
        ("target = 40.0", 'target = "baseline@400"', "needs a target that is a number"),
        ('axis = "steps"', 'axis = "seconds"', "use steps, images or flops"),
        ('metric = "fd:local"', 'metric = "success@pusht"', "needs a metric that falls"),
    ],
)
def test_invalid_ends_are_rejected(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = write_file(tmp_path, "repa")
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        read_race(file)


def test_claim_that_sets_no_end_keeps_its_hash(tmp_path: Path) -> None:
    """The hash of version 0.3, before `until` existed."""
    plain = read_race(write_file(tmp_path, "repa", until="")).claims[0]
    table = plain.model_dump(mode="json")
    assert table["sequential"]["until"] == "end"
    decided = read_race(write_file(tmp_path, "repa")).claims[0]
    assert claim_hash(plain) == "58614d5b3039" and claim_hash(decided) != claim_hash(plain)


def test_dry_run_says_what_early_ends_save_and_forbid(tmp_path: Path) -> None:
    file = write_file(tmp_path, "repa")
    words = ["race", str(file), "--out", str(tmp_path / "runs"), "--dry-run"]
    shown = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert "a run ends at step 300 of 2000 at the earliest, which saves at most" in shown.output
    assert "cannot answer: values at the end of a run, lower targets" in shown.output
    found = json.loads(CliRunner().invoke(cli, [*words, "--json"]).stdout)["until"]
    assert found["saves_at_most"] == pytest.approx(0.85 * found["of"], rel=1e-6)
    assert found["earliest"] == 300 and set(found["rules"]) == {"flow", "repa"}


@pytest.mark.slow
def test_plan_of_a_finished_race_has_nothing_to_extend(ended: tuple[Path, Path, Course]) -> None:
    file, directory, course = ended
    words = ["race", str(file), "--out", str(directory), "--dry-run", "--json"]
    runs = json.loads(CliRunner().invoke(cli, words).stdout)["runs"]
    assert sum(run["status"] == "done" for run in runs) == len(course.runs)
    assert {run["status"] for run in runs} <= {"done", "missing"}


def test_audit_notes_the_rule_and_the_runs_that_it_ended(ended: tuple[Path, Path, Course]) -> None:
    [about] = [text for text in notes(judged(*ended[:2])["dispersive"]) if "judged up to" in text]
    assert "3 of 6 runs got there, of which 3 ended" in about
