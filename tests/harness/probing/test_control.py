"""Control probe: features, state and action, baselines, the table of a study, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from harness.assembly.build import backbone_config
from harness.backbone.times import Times
from harness.backbone.tokens import Part, patchify
from harness.cli.probe import probe
from harness.config.spec import RunSpec
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.probing.control import LEAST, measured, of_initial, of_layers, of_pixels, per_frame, scene_of
from harness.records.record_writer import RecordWriter
from harness.runtime.random_streams import Streams
from harness.train.state import build_run, checkpoint_writer
from harness.train.trained_run import checkpoint_of_run, load_ema
from metrics.domain.control import decoded
from tests.support.modal import modal
from tests.support.runs import tiny

pytestmark = pytest.mark.usefixtures("quick_networks")

CPU = torch.device("cpu")
SAMPLES = ("--samples", "60")


def made(spec: RunSpec, out: Path, steps: tuple[int, ...] = (3, 6), *, done: bool = True) -> Path:
    """Write a run whose checkpoints have random weights, so that each layer and step gives other features."""
    dataset = open_dataset(spec.data)
    run = build_run(spec, dataset, split(dataset, spec.data.held_out), CPU)
    with RecordWriter(out / spec.id) as record:
        record.write_spec(spec.to_toml())
        record.begin({}, after_step=0)
        for run.step in steps:
            for name, weights in run.ema.named_parameters():
                weights.add_(0.1 * Streams(run.step).normal(name, [0], weights.shape)[0])
            checkpoint_writer(run, out / spec.id / "checkpoints")()
        if done:
            record.finish({})
    return out / spec.id


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two video runs, a joint run, runs on its video and its sound alone, and an unfinished run."""
    out = tmp_path_factory.mktemp("study")
    for spec in (modal("video"), modal("video", "seed=1"), modal("joint")):
        made(spec, out)
    for video, audio in ((1.0, 0.0), (0.0, 1.0)):
        weights = (f"data.video_weight={video}", f"data.audio_weight={audio}")
        made(modal("joint", *weights, f"eval.metrics=['fd:{'video:' if video else ''}local']"), out)
    made(modal("video", "seed=2"), out, done=False)
    return out


def table_copy(study: Path, to: Path) -> Path:
    """Copy the study without a table; its runs are symbolic links."""
    to.mkdir()
    for run in (path for path in study.iterdir() if path.is_dir()):
        (to / run.name).symlink_to(run)
    return to


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    return table_copy(study, tmp_path / "study")


def invoked(path: Path, *words: str) -> Result:
    return CliRunner().invoke(probe, [str(path), "--control", *words], catch_exceptions=False)


def table_of(path: Path, *words: str) -> dict[str, Any]:
    result = invoked(path, "--json", *SAMPLES, *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def noised(spec: RunSpec, index: np.ndarray, time: float) -> torch.Tensor:
    data = open_dataset(spec.data)
    x0 = torch.from_numpy(np.stack([data.sample(int(i)).x for i in index])) / 127.5 - 1
    return (1 - time) * x0 + time * Streams(0).normal("probe/noise", index, x0.shape[1:])


def test_per_frame_is_the_mean_over_tokens_of_a_time_patch() -> None:
    """With patches as tokens it is the mean of pixels over rows and columns of the grid, without sound."""
    config = backbone_config(spec := modal("joint"), open_dataset(spec.data))
    video = torch.randn(3, *config.shape)
    tokens = patchify(video, config.parts[0].patch)
    features = per_frame(torch.cat([tokens, torch.full((3, 9, tokens.shape[-1]), 1e6)], 1), config)
    assert features.shape == (3, 2, 1 * 2 * 4 * 4)
    # (B, F, frame, rows, p, columns, p)
    by_hand = video.reshape(3, 2, 2, 4, 4, 4, 4).mean((3, 5)).flatten(2)
    torch.testing.assert_close(features, by_hand)


@pytest.mark.parametrize("modality", [pytest.param("video", marks=pytest.mark.slow), "joint"])
def test_layer_features_equal_those_from_hooks(study: Path, modality: str) -> None:
    """The reference: hooks on a pass of the full network, and loops over its tokens."""
    spec, index = modal(modality), np.array([5, 900, 33])
    file = checkpoint_of_run(study / spec.id, 3)
    model = load_ema(file, spec, open_dataset(spec.data), CPU)
    captured: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: captured.append(out[0])) for block in model.blocks
    ]
    with torch.no_grad():
        model(noised(spec, index, 0.5), Times.per_sample(torch.full((3,), 0.5)), torch.full((3,), 10))
    for hook in hooks:
        hook.remove()
    data = open_dataset(spec.data)
    x0 = torch.from_numpy(np.stack([data.sample(int(i)).x for i in index])) / 127.5 - 1
    found = of_layers(model, 0.5, CPU)(index, x0)
    assert list(found) == ["layer 1", "layer 2", "layer 3", "layer 4"]
    for features, tokens in zip(found.values(), captured, strict=True):
        frames, places = 2, 16
        by_hand = [
            [sum(h[f * places + p] for p in range(places)) / places for f in range(frames)] for h in tokens
        ]
        torch.testing.assert_close(features, torch.stack([torch.stack(row) for row in by_hand]))


@pytest.mark.parametrize("modality", ["video", "joint"])
def test_pixels_baseline_equals_the_input_of_the_network(modality: str) -> None:
    spec, index = modal(modality), np.array([7, 8])
    data = open_dataset(spec.data)
    x0 = torch.from_numpy(np.stack([data.sample(int(i)).x for i in index])) / 127.5 - 1
    found = of_pixels(backbone_config(spec, data), 0.25)(index, x0)["pixels"]
    video = noised(spec, index, 0.25).flatten(1)[:, : 4 * 16 * 16].reshape(2, 2, 2 * 16 * 16)
    torch.testing.assert_close(found, video)


def test_scene_has_true_states_and_actions() -> None:
    spec = modal("video", "data.frames=8")
    data = open_dataset(spec.data)
    held_out = split(data, 0.9).held_out
    scene = scene_of(data, held_out, backbone_config(spec, data), 50)
    assert scene.state.shape == scene.action.shape == (150, 2) and set(scene.index) <= set(held_out)
    free = 0
    for row, video in enumerate(scene.videos):
        number, first = scene.index[video], 2 * (row % 3)
        mean = [data.position[number, first + k : first + k + 2].mean(0) for k in (0, 2)]
        np.testing.assert_allclose(scene.state[row], mean[0])
        np.testing.assert_allclose(scene.action[row], mean[1] - mean[0])
        velocity = data.velocity[number, first : first + 4]
        # The object does not meet a wall.
        if (velocity == velocity[0]).all():
            np.testing.assert_allclose(scene.action[row], 2 * velocity[0])
            free += 1
    assert free > 20


def test_every_layer_equals_the_embedded_input_at_initial_weights() -> None:
    """So one row describes the untrained network, whose weights are those of the run's seed."""
    spec = modal("video", "seed=3")
    data, index = open_dataset(spec.data), np.arange(4)
    run = build_run(spec, data, split(data, 0.9), CPU)
    x0 = torch.from_numpy(np.stack([data.sample(int(i)).x for i in index])) / 127.5 - 1
    initial = of_initial(backbone_config(spec, data), 3, 0.25, CPU)(index, x0)["untrained"]
    embedded = run.model.x_embedder(noised(spec, index, 0.25)) + run.model.pos_embed
    torch.testing.assert_close(initial, per_frame(embedded.detach(), run.model.config))
    for features in of_layers(run.ema, 0.25, CPU)(index, x0).values():
        torch.testing.assert_close(features, initial, rtol=0, atol=0)


def test_decoding_is_perfect_for_positions_and_fails_for_noise() -> None:
    """State is decoded from positions, action only from two positions, and neither from noise."""
    spec = modal("video", "data.frames=8")
    data = open_dataset(spec.data)
    scene = scene_of(data, split(data, 0.9).held_out, backbone_config(spec, data), 400)

    def known(index: np.ndarray, x0: torch.Tensor) -> dict[str, torch.Tensor]:
        state = torch.from_numpy(data.position[index].reshape(len(index), 4, 2, 2).mean(2))
        # The last time patch, which has no next one, is left out by the probe.
        following = torch.roll(state, -1, 1)
        return {
            "state": state,
            "both": torch.cat([state, following], 2),
            "noise": torch.randn(*state.shape[:2], 8),
        }

    rows = {row.name: row for row in measured([known], scene, data, CPU)}
    assert rows["state"].state.r2.mean == pytest.approx(1, abs=1e-4) and rows["state"].action.r2.mean < 0.3
    assert rows["both"].action.r2.mean == pytest.approx(1, abs=1e-4)
    assert abs(rows["noise"].state.r2.mean) < 0.1 and abs(rows["noise"].action.r2.mean) < 0.1


def test_command_returns_the_decoding_of_each_layer(study: Path) -> None:
    spec = modal("video")
    data = open_dataset(spec.data)
    scene = scene_of(data, split(data, 0.9).held_out, backbone_config(spec, data), 60)
    model = load_ema(checkpoint_of_run(study / spec.id, 3), spec, data, CPU)
    x0 = torch.from_numpy(np.stack([data.sample(int(i)).x for i in scene.index])) / 127.5 - 1
    layers = of_layers(model, 0.5, CPU)(scene.index, x0)
    features = {name: h[:, :-1].flatten(0, 1).numpy() for name, h in layers.items()}
    found = table_of(study / spec.id, "--step", "3", "--time", "0.5")
    assert list(found["steps"]) == ["3"] and (found["videos"], found["seed"], found["method"]) == (
        60,
        0,
        "flow",
    )
    for target, truth in (("state", scene.state), ("action", scene.action)):
        for name, expected in decoded(features, truth, scene.videos).items():
            assert found["steps"]["3"][name][target]["mean"] == pytest.approx(float(expected.r2), abs=1e-6)
            assert found["steps"]["3"][name][target]["n"] == expected.r2.n == 15
    assert found["pixels"]["state"]["mean"] > found["untrained"]["state"]["mean"] + 0.2
    assert not (study / spec.id / "control.json").exists()


def test_all_steps_are_listed_in_order(study: Path) -> None:
    run = study / modal("video").id
    every = table_of(run, "--all-steps")
    assert list(every["steps"]) == ["3", "6"]
    assert every["steps"]["6"] == table_of(run)["steps"]["6"] and every["steps"]["3"] != every["steps"]["6"]


@pytest.mark.slow
def test_study_table_has_its_runs_and_the_reasons_of_those_left_out(copy: Path) -> None:
    table = table_of(copy)
    assert table == json.loads((copy / "control.json").read_text())
    assert table["protocol"] == {"time": 0.25, "samples": 60}
    assert len(table["runs"]) == 4
    for id_, entry in table["runs"].items():
        single = table_of(copy / id_)
        assert {key: single[key] for key in entry} == entry
    reasons = sorted(table["left_out"].values())
    assert [reason.partition(":")[0].partition(")")[0] for reason in reasons] == [
        "the run is not finished (stopped",
        "this data set (audio",
    ]


def test_video_alone_has_the_pixels_baseline_of_the_joint_run(copy: Path) -> None:
    """A joint run and the run on its video alone get the same videos with the same noise."""
    runs = table_of(copy)["runs"]
    joint = runs[modal("joint").id]
    (alone,) = [e for id_, e in runs.items() if e["data"] == joint["data"] and id_ != modal("joint").id]
    assert alone["pixels"] == joint["pixels"] and alone["videos"] == joint["videos"] == 60


@pytest.mark.slow
def test_repeated_command_measures_only_missing_checkpoints(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also resumes between two runs and adds steps; another protocol replaces the table."""
    measuring = []
    monkeypatch.setattr(
        "harness.probing.control_table.measured",
        lambda *args: measuring.append(args[-1]) or measured(*args),
    )
    first = table_of(copy)
    assert measuring == ["baselines", "step-00000006"] * 4
    assert table_of(copy) == first and len(measuring) == 8
    lost = next(iter(first["runs"]))
    half = first | {"runs": {id_: entry for id_, entry in first["runs"].items() if id_ != lost}}
    (copy / "control.json").write_text(json.dumps(half))
    assert table_of(copy)["runs"] == first["runs"] and measuring[8:] == ["baselines", "step-00000006"]
    every = table_of(copy, "--all-steps")
    assert measuring[10:] == ["step-00000003"] * 4
    assert all(list(entry["steps"]) == ["3", "6"] for entry in every["runs"].values())
    table_of(copy, "--time", "0.5")
    assert len(measuring) == 14 + 8


@pytest.mark.slow
def test_concurrent_commands_lose_no_row(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first run's baselines are measured, another command measures every step of every run."""

    def with_second_command(*args: Any) -> Any:
        monkeypatch.setattr("harness.probing.control_table.measured", measured)
        table_of(copy, "--all-steps")
        return measured(*args)

    monkeypatch.setattr("harness.probing.control_table.measured", with_second_command)
    table = table_of(copy)
    assert len(table["runs"]) == 4 and table["left_out"]
    assert all(list(entry["steps"]) == ["3", "6"] for entry in table["runs"].values())
    assert json.loads((copy / "control.json").read_text()) == table


@pytest.mark.slow
def test_text_output_has_every_row_and_the_runs_left_out(copy: Path) -> None:
    output = invoked(copy, *SAMPLES).output
    assert output.count("untrained") == 4 and output.count("layer 4") == 4
    assert "1 left out: the run is not finished (stopped)" in output and str(copy / "control.json") in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("data.held_out=0.0",),
            "data.held_out leaves 0 videos, but control needs at least 20",
        ),
        (("backbone.patch_time=4",), "backbone.patch_time = 4 makes a clip one time patch"),
    ],
)
def test_run_is_rejected_when_videos_or_time_patches_are_too_few(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    run = made(modal("video", *overrides), tmp_path, (1,))
    for path in (run, tmp_path):
        with pytest.raises(UserError, match=message):
            invoked(path, *SAMPLES)
    assert not (tmp_path / "control.json").exists()


def test_run_is_rejected_when_data_have_no_positions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this data set \(image\) records no positions"):
        invoked(made(tiny(), tmp_path, (1,)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--encoder", "random:tiny"), "--encoder applies to encoders"),
        (("--download",), "--download applies to encoders"),
        (("--probe", "repa"), "--probe applies to encoders"),
        (("--step", "3", "--all-steps"), "--step 3 and --all-steps are mutually exclusive"),
    ],
)
def test_incompatible_options_are_rejected(study: Path, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        invoked(study / modal("video").id, *words)


def test_invalid_steps_and_tables_are_rejected(study: Path, copy: Path) -> None:
    run = study / modal("video").id
    with pytest.raises(UserError, match="--all-steps requires --control"):
        CliRunner().invoke(probe, [str(run), "--all-steps"], catch_exceptions=False)
    with pytest.raises(UserError, match="--step 3 applies to one run"):
        invoked(copy, "--step", "3")
    with pytest.raises(UserError, match="has no checkpoint at step 5"):
        invoked(run, "--step", "5")
    (copy / "control.json").write_text("{")
    with pytest.raises(UserError, match="not a table of control; move it away"):
        invoked(copy)


def test_scene_accepts_the_minimum_of_videos_and_patches_of_one_frame() -> None:
    spec = modal("video", "backbone.patch_time=1")
    data = open_dataset(spec.data)
    config = backbone_config(spec, data)
    assert config.parts[0] == Part((1, 4, 16, 16), (1, 4, 4))
    scene = scene_of(data, np.arange(LEAST), config, 1000)
    np.testing.assert_array_equal(scene.state.reshape(LEAST, 3, 2), data.position[scene.index, :3])
    with pytest.raises(UserError, match="leaves 19 videos"):
        scene_of(data, np.arange(LEAST - 1), config, 1000)
