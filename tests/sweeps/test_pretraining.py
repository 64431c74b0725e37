"""Studies in two stages: each run starts from the run of the first stage that its arm and its seed name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import flowrace as flowrace_package
from harness.assembly.frozen import is_of_further_parts
from harness.assembly.resolve import load_spec
from harness.data.dataset import Capabilities, content_of
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.evaluation.kept_features import samples_identity
from harness.records import checkpoint
from harness.records.checkpoint_files import HEADER
from harness.records.record import Record
from harness.train.state import POSITIONS, load_pretrained
from harness.train.trained_run import checkpoint_of_run
from reports.race.race import read_race
from sweeps.plan.budget import check_budget, count_flops
from sweeps.plan.missing_weights import check_weights
from sweeps.plan.plan import PlannedRun, make_plan
from sweeps.plan.pretraining import first_folder, stages
from sweeps.plan.study import Budget, load_study
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
RACE = """study = "study.toml"
[claim]
name = "faster"
candidate = "self_flow"
baseline = "flow"
metric = "loss:held_out"
target = 1.0
factor = 1.3
[claim.sequential]
max_pairs = 3
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


def write_stages(folder: Path, **stages: str) -> None:
    """Write studies that start from each other by name."""
    for name, first in stages.items():
        text = POLICIES if first else VIDEOS
        text = text.replace('"policies"', f'"{name}"').replace('"videos"', f'"{name}"')
        (folder / f"{name}.toml").write_text(text.replace("videos.toml", f"{first}.toml"))


@pytest.mark.parametrize("stages", [{"one": "one"}, {"one": "two", "two": "one"}])
def test_study_that_is_its_own_first_stage_is_rejected(tmp_path: Path, stages: dict[str, str]) -> None:
    write_stages(tmp_path, **stages)
    with pytest.raises(UserError, match=r"(one|two).toml is already being planned"):
        flowrace_package.plan_study(tmp_path / "one.toml")


def test_all_stages_before_a_study_are_found_and_have_separate_folders(tmp_path: Path) -> None:
    write_stages(tmp_path, one="two", two="three", three="")
    study = load_study(str(tmp_path / "one.toml"))
    first, second = stages(study)
    assert [first.name, second.name] == ["two", "three"]
    with pytest.raises(UserError, match="study one and its \\[pretraining\\] three have one folder"):
        first_folder(study, first, tmp_path / "three")


def test_stages_on_the_same_data_share_the_split(folder: Path) -> None:
    assert {run.spec.data.held_out for run in planned(folder)} == {0.4}
    kept = [one.spec.start.run for one in planned(folder, "data.held_out=0.5") if one.spec.start.run]
    assert kept[0] != planned(folder)[1].spec.start.run
    with pytest.raises(UserError, match=r"may train on samples that these runs hold out"):
        planned(folder, "pretraining.data.held_out=0.5")


def test_budget_counts_the_first_stage(folder: Path) -> None:
    runs, earlier = planned(folder), planned(folder, file="videos.toml")
    alone = sum(count_flops(runs).values())
    both = alone + sum(count_flops(earlier).values())
    study = load_study(str(folder / "policies.toml"), [f'data.root="{folder / "demos"}"'])
    check_budget(study.model_copy(update={"budget": Budget(flops=both)}), runs)
    with pytest.raises(UserError, match="FLOPs with its first stage, more than its budget"):
        check_budget(study.model_copy(update={"budget": Budget(flops=(alone + both) / 2)}), runs)


def test_race_runs_the_first_stage_before_its_pairs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = ("seed = [0, 1]", "seed = [0, 1, 2]")
    (tmp_path / "videos.toml").write_text(VIDEOS.replace(*seeds))
    study = POLICIES.partition("[axes]")[0].replace(
        "[pretraining]", f'"data.root" = "{folder / "demos"}"\n[pretraining]'
    )
    (tmp_path / "study.toml").write_text(
        study.replace("[pretraining]", '"start.arm" = "self_flow"\n[pretraining]')
        + '[axes]\n"method.name" = ["flow", "self_flow"]\n'
    )
    claim = tmp_path / "claim.toml"
    claim.write_text(RACE)
    asked: list[tuple[str, int]] = []

    def stopped(runs: list[PlannedRun], directory: Path, *_: object) -> tuple[dict[str, str], bool]:
        asked.append((directory.name, len(runs)))
        return {}, True

    monkeypatch.setattr("sweeps.cli.first_stage.run_all", stopped)
    found = flowrace("race", str(claim), "--out", str(tmp_path / "runs" / "raced"), "--no-track")
    assert asked == [("videos", 6)], found.exception or found.output
    assert found.exit_code == 130


def test_weights_that_a_finished_first_stage_did_not_keep_are_missing_before_the_start(
    folder: Path, tmp_path: Path
) -> None:
    words = (f'data.root="{folder / "demos"}"', "train.steps=1")
    study = load_study(str(folder / "policies.toml"), words)
    runs = make_plan(study, tmp_path / "policies").runs
    first = Path(runs[1].spec.start.file)
    check_weights(runs, tmp_path / "policies")
    write_run(first, grid=[3])
    kept = first / "checkpoints" / "step-00000003.safetensors"
    kept.parent.mkdir(exist_ok=True)
    save_file({"w": np.zeros(1, np.float32)}, kept)
    with pytest.raises(UserError, match=r"at step 1, but that run is at step 3 and kept weights of steps 3"):
        check_weights(runs, tmp_path / "policies")
    kept = kept.rename(kept.with_name("step-00000001.safetensors"))
    check_weights(runs, tmp_path / "policies")
    save_file({"w": np.zeros(1, np.float32)}, kept, {HEADER: '{"precision": "bfloat16"}'})
    with pytest.raises(UserError, match=r"at step 1 in bfloat16; train that run with train.keep_precision"):
        check_weights(runs, tmp_path / "policies")


def test_run_outside_a_study_has_no_arm_to_start_from(folder: Path) -> None:
    spec = load_spec("demos", [f'data.root="{folder / "demos"}"', "start.arm=flow"])
    with pytest.raises(UserError, match=r"start.arm = flow names an arm.*flowrace sweep STUDY"):
        trained(spec, folder / "alone")


def test_episodes_keeps_the_first_to_train_on_and_all_held_out_ones(folder: Path) -> None:
    words = [f'data.root="{folder / "demos"}"', "data.held_out=0.4", "data.frames=1"]
    full, two = (open_dataset(load_spec("demos", [*words, *more]).data) for more in ([], ["data.episodes=2"]))
    assert full.fingerprint == two.fingerprint == content_of(full)
    # Caches of features and bases distinguish them.
    alone = Capabilities(two).with_parts
    assert alone is not None
    assert content_of(two) == content_of(alone(("video",))) != content_of(full)
    assert samples_identity(two, np.arange(2)) != samples_identity(full, np.arange(2))
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
