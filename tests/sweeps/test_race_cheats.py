"""Ways to cheat in a race, each of which is detected and named, and what is no cheat."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.errors import UserError
from harness.records.study_folder import StudyFolder
from reports.audit.audit import Audit
from reports.audit.judge_files import judge_claims
from reports.audit.look_log import read_looks, record_look
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.race.coordinator import run_race
from sweeps.race.race_file import read_race
from tests.reports.synthetic import power_law, write_run
from tests.sweeps.races import SPEEDS, Trainer, claim_text, judged, raced, sequential, write_file

ANYTIME = 'kind = "anytime"\n'


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


def cheat(file: Path, directory: Path, old: str, new: str) -> Audit:
    file.write_text(file.read_text().replace(old, new))
    return judged(file, directory)[0]


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
    more = claim_text("repa", more=sequential()).replace('name = "repa"', 'name = "second"', 1)
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
    counted = folder.plan_file.read_bytes()
    plan["looks"] = {"count": 1, "head": hashlib.sha256(first).hexdigest()}
    folder.plan_file.write_text(json.dumps(plan))
    assert judged(file, directory)[0].verdict == "supported"
    # The rerun counts that look, so that a log that is cut later is named.
    raced(file, Trainer(directory))
    assert folder.plan_file.read_bytes() == counted


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


def test_futile_claim_stays_so_when_its_planned_pairs_are_raised(tmp_path: Path) -> None:
    """A family whose other claims are open looks again."""
    futile = {"factor = 1.3": "factor = 1.42", "max_pairs = 6": "max_pairs = 6\nfutility = 0.99"}
    file = write_file(tmp_path, "repa", pairs=6)
    text = file.read_text() + ANYTIME
    for old, new in futile.items():
        text = text.replace(old, new)
    file.write_text(text)
    trainer = Trainer(tmp_path / "runs", noise=0.1)
    _, course, _ = raced(file, trainer)
    last = course.looks[-1]
    assert last["claims"][0]["ended"] == "futile"
    file.write_text(text.replace("max_pairs = 6", "max_pairs = 12"))
    raised = [replace(audit, prospects={}) for audit in judged(file, trainer.directory)]
    [seen] = record_look(trainer.directory, last["look"] + 1, raised)["claims"]
    assert seen["hash"] != last["claims"][0]["hash"] and seen["ended"] == "futile"


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
