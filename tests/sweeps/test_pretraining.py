"""Studies in two stages: each run starts from the run of the first stage that its arm and its seed name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from harness.assembly.frozen import is_of_further_parts
from harness.assembly.resolve import load_spec
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.records import checkpoint
from harness.records.record import Record
from harness.train.state import POSITIONS, load_pretrained
from harness.train.trained_run import checkpoint_of_run
from reports.race.race import read_race
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.study import load_study
from tests.reports.synthetic import write_run
from tests.support.commands import flowrace
from tests.support.demonstrations import demonstrations
from tests.support.runs import trained

SHARED = """base = "demos"
baseline = "flow"
[set]
"backbone.size" = "2x32x2"
"backbone.patch" = 4
"train.batch_size" = 4
"train.steps" = 1
"train.checkpoint_every" = 1
"train.warmup_steps" = 0
"train.learning_rate" = 1e-30
"eval.every" = 1
"eval.samples" = 2
"eval.sampler_steps" = 1
"runtime.threads" = 1
"data.held_out" = 0.4
"data.frames" = 2
"""
VIDEOS = f"""name = "videos"
{SHARED}
"data.parts.state.weight" = 0
"data.parts.action.weight" = 0
"data.given" = "first_frame"
[axes]
seed = [0, 1]
"method.name" = ["flow", "self_flow"]
"""
POLICIES = f"""name = "policies"
{SHARED}
"data.chunk" = 3
[pretraining]
study = "videos.toml"
[axes]
seed = [0, 1]
"start.arm" = ["", "self_flow"]
"start.frozen" = [false, true]
[[exclude]]
reason = "initial weights have no features to freeze"
where = {{ "start.arm" = "", "start.frozen" = true }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    demonstrations(folder / "demos")
    (folder / "videos.toml").write_text(VIDEOS)
    (folder / "policies.toml").write_text(POLICIES)
    return folder


def planned(folder: Path, *overrides: str, file: str = "policies.toml") -> list[PlannedRun]:
    words = (f'data.root="{folder / "demos"}"', *overrides)
    name = file.removesuffix(".toml")
    return make_plan(load_study(str(folder / file), words), folder / "runs" / name).runs


def test_plan_names_the_pretrained_run_of_the_same_seed(folder: Path) -> None:
    first = {run.spec.seed: run.id for run in planned(folder, file="videos.toml") if "self" in run.label}
    runs = planned(folder)
    assert [run.spec.start.run for run in runs] == ["", first[0], first[0], "", first[1], first[1]]
    assert {run.spec.start.run_step for run in runs if run.spec.start.run} == {1}
    assert [run.id for run in runs] == [run.id for run in planned(folder)]
    assert len({run.id for run in runs}) == 6


def test_setting_of_the_first_stage_changes_the_runs_that_start_from_it(folder: Path) -> None:
    runs, others = planned(folder), planned(folder, "pretraining.train.betas=[0.8, 0.99]")
    same = [one.id == other.id for one, other in zip(runs, others, strict=True)]
    assert same == [True, False, False, True, False, False]
    longer = planned(folder, "pretraining.train.steps=2")
    assert {run.spec.start.run_step for run in longer if run.spec.start.run} == {2}
    assert runs[1].id != longer[1].id


def test_study_with_a_first_stage_is_planned_again_from_its_own_file(folder: Path, tmp_path: Path) -> None:
    study = load_study(str(folder / "policies.toml"), ["pretraining.train.steps=2"])
    (tmp_path / "study.toml").write_text(study.to_toml())
    again = load_study(str(tmp_path / "study.toml"))
    assert [run.id for run in make_plan(again).runs] == [run.id for run in make_plan(study).runs]


def ema(record: Record) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint_of_run(record.path, None)).part("ema")


def test_run_starts_from_its_pretrained_weights_and_the_initial_ones_of_its_seed(folder: Path) -> None:
    scratch, pretrained = planned(folder)[:2]
    first = next(run for run in planned(folder, file="videos.toml") if run.id == pretrained.spec.start.run)
    source = ema(trained(first.spec, folder / "runs" / "videos"))
    found = [ema(trained(run.spec, folder / "runs" / "policies")) for run in (scratch, pretrained)]

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        """Compare weights after a step whose learning rate moves nothing but zeros, by 1e-30."""
        return torch.allclose(one, other, rtol=0, atol=1e-20)

    further = [name for name in found[0] if is_of_further_parts(name)]
    assert len(further) > 2 and all(same(found[0][name], found[1][name]) for name in further)
    for name in found[1].keys() - {*further, POSITIONS}:
        assert same(found[1][name], source[name])
    other = pretrained.spec.start.model_copy(update={"run": "0123456789ab"})
    with pytest.raises(UserError, match="other weights than those of run 0123456789ab at step 1"):
        load_pretrained(other)
    missing = pretrained.spec.start.model_copy(update={"run_step": 2})
    with pytest.raises(UserError, match=r"weights of run .* at step 2 are missing in .*flowrace sweep"):
        load_pretrained(missing)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("self_flow", "repa"), "unknown start.arm 'repa'"),
        (("seed = [0, 1]", "seed = [0, 7]"), "start.arm = self_flow has no run of seed 7"),
        (("2x32x2", "1x32x2"), "has another network.*give both stages the same backbone"),
        (('[pretraining]\nstudy = "videos.toml"\n', ""), r"which this study lacks; add \[pretraining\]"),
        (('name = "policies"', 'name = "videos"'), r"have one folder"),
    ],
)
def test_start_that_the_first_stage_does_not_have_is_rejected(
    folder: Path, change: tuple[str, str], expected: str
) -> None:
    changed = folder / "changed.toml"
    changed.write_text(POLICIES.replace(*change))
    name = "videos" if "one folder" in expected else "changed"
    with pytest.raises(UserError, match=expected):
        make_plan(load_study(str(changed)), folder / "runs" / name)


def test_run_outside_a_study_has_no_arm_to_start_from(folder: Path) -> None:
    spec = load_spec("demos", [f'data.root="{folder / "demos"}"', "start.arm=flow"])
    with pytest.raises(UserError, match=r"start.arm = flow names an arm.*flowrace sweep STUDY"):
        trained(spec, folder / "alone")


def test_episodes_keeps_the_first_to_train_on_and_all_held_out_ones(folder: Path) -> None:
    words = [f'data.root="{folder / "demos"}"', "data.held_out=0.4", "data.frames=1"]
    full, two = (open_dataset(load_spec("demos", [*words, *more]).data) for more in ([], ["data.episodes=2"]))
    assert full.fingerprint == two.fingerprint
    (train, held_out), (some, same) = split(full, 0.4), split(two, 0.4)

    def episodes(dataset: object, index: object) -> list[bytes]:
        return list(dict.fromkeys(dataset.key(int(i)) for i in index))  # type: ignore[attr-defined]

    assert episodes(two, some) == episodes(full, train)[:2]
    assert episodes(two, same) == episodes(full, held_out) and len(same)
    with pytest.raises(UserError, match=r"data.episodes = 6, but .* has \d demonstrations to train on"):
        open_dataset(load_spec("demos", [*words, "data.episodes=6"]).data)


def test_policies_are_compared_with_those_from_scratch_on_as_many_demonstrations(tmp_path: Path) -> None:
    for episodes in (50, 200):
        for arm in ("", "flow", "self_flow"):
            for seed in (0, 1):
                start = {"start.arm": arm, "start.run": f"{seed}{arm}", "start.run_step": 9} if arm else {}
                write_run(
                    tmp_path / f"{episodes}{arm}{seed}",
                    seed=seed,
                    metric=lambda step, arm=arm: (1000 if arm else 2000) * step**-0.5,
                    set_={"data.episodes": episodes, **start},
                )
    race = read_race([tmp_path], target=40.0, baseline="flow (data.episodes = 50)")
    assert [cell.label for cell in race.cells] == ["data.episodes = 50", "data.episodes = 200"]
    assert [cell.baseline for cell in race.cells] == [f"flow (data.episodes = {n})" for n in (50, 200)]
    pretrained = race.speedups["steps", "flow (data.episodes = 200, start.arm = self_flow)"]
    # Times to 40 are (2000 / 40)^2 and (1000 / 40)^2, and the longest run has 2,000 steps.
    assert pretrained.n == 2 and pretrained.estimate is not None


@pytest.mark.slow
def test_sweep_runs_both_stages_and_resumes_them(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "demos", tmp_path / "demos")
    (tmp_path / "videos.toml").write_text(
        VIDEOS.replace("[0, 1]", "[0]").replace('"flow", "self_flow"', '"self_flow"').replace("baseline", "#")
    )
    (tmp_path / "policies.toml").write_text(
        POLICIES.replace("[0, 1]", "[0]").replace("[false, true]", "[true]")
    )
    words = ("sweep", str(tmp_path / "policies.toml"), "--set", f'data.root="{tmp_path / "demos"}"')
    words = (*words, "--set", "train.learning_rate=1e-3", "--out", str(tmp_path / "runs" / "policies"))
    plan = flowrace(*words, "--dry-run")
    assert plan.exit_code == 0 and "study videos in" in plan.output and "study policies in" in plan.output
    for status in ("missing", "done"):
        assert flowrace(*words, "--no-track", "--no-report").exit_code == 0, status
    assert len(list((tmp_path / "runs").glob("videos/*/done"))) == 1
    assert len(list((tmp_path / "runs").glob("policies/*/done"))) == 1
