"""Policies: fine-tuned from a run, from scratch or on frozen features, and loaded without demonstrations."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.acting.network_policy import NetworkPolicy
from harness.acting.policy import Observation
from harness.assembly.build import backbone_config
from harness.assembly.frozen import is_of_further_parts
from harness.assembly.resolve import load_spec, resolve
from harness.backbone.initialize import initialize
from harness.backbone.kinds import network_of
from harness.config.tables import merge
from harness.costs.flops import count_spec
from harness.costs.memory import footprint
from harness.data.open import open_dataset
from harness.data.robot import FILE
from harness.environments.base import open_task
from harness.errors import UserError
from harness.policy.finetune import finetune_spec
from harness.policy.policy import load_policy
from harness.records import checkpoint, checkpoint_files
from harness.records.record import Record
from harness.rollouts.named import run_acting
from harness.runtime.random_streams import Streams
from harness.train.state import shared_weights, start_digest
from harness.train.trained_run import checkpoint_of_run, drawing_of_run
from tests.support.commands import flowrace
from tests.support.demonstrations import demonstrations, frame, state
from tests.support.runs import everything, trained

SMALL = (
    "backbone.size=2x32x2", "backbone.patch=4", "train.batch_size=4", "train.steps=2", "train.log_every=1",
    "train.warmup_steps=0", "train.checkpoint_every=1", "eval.every=2", "eval.samples=2",
    "eval.sampler_steps=2", "runtime.threads=1", "data.held_out=0.4", "data.frames=2", "data.chunk=3",
)  # fmt: skip
VIDEOS = ("data.parts.state.weight=0", "data.parts.action.weight=0", "data.given=first_frame")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def demos(root: Path) -> Path:
    return demonstrations(root / "demos")


@pytest.fixture(scope="module")
def videos(root: Path, demos: Path) -> Record:
    """A generative run on the videos of the demonstrations."""
    words = [w for w in SMALL if not w.startswith("data.chunk")]
    return trained(load_spec("demos", (*words, *VIDEOS, f"data.root={demos}")), root / "videos")


@pytest.fixture(scope="module")
def tuned(root: Path, demos: Path, videos: Record) -> Record:
    return trained(finetune_spec(str(videos.path), demos, "push", overrides=SMALL), root / "tuned")


def ema(record: Record, step: int | None = None) -> dict[str, torch.Tensor]:
    return checkpoint.load(checkpoint_of_run(record.path, step)).part("ema")


def observed(count: int = 3) -> Observation:
    images = np.stack([frame(1, step) for step in range(count)])
    return {"image": images, "state": np.array([state(1, step) for step in range(count)], np.float32)}


def test_policy_acts_alike_for_equal_noise_without_the_demonstrations(tuned: Record, tmp_path: Path) -> None:
    moved = tmp_path / tuned.path.name
    shutil.copytree(tuned.path, moved)
    spec = (moved / "spec.toml").read_text()
    assert str(tmp_path) not in spec
    policy, again = load_policy(tuned.path), load_policy(moved)
    assert (policy.chunk, policy.action_size) == (3, 3)
    noise = Streams(0).normal("noise", np.arange(3), policy.noise_shape)
    actions = policy.act(observed(), noise)
    assert actions.shape == (3, 3, 3) and actions.dtype == torch.float32 and actions.isfinite().all()
    assert torch.equal(actions, again.act(observed(), noise))
    assert not torch.isclose(actions, policy.act(observed(), noise.flip(0))).all()
    assert load_policy(checkpoint_of_run(tuned.path, 1)).act(observed(), noise).shape == actions.shape


def test_untrained_policy_returns_its_noise_in_the_units_of_actions(tuned: Record) -> None:
    """The official initial velocity is 0, so a sampler leaves the noise as it is."""
    policy = load_policy(tuned.path)
    fresh = replace(policy, model=type(policy.model)(policy.model.config))
    initialize(fresh.model, Streams(0))
    noise = Streams(1).normal("noise", np.arange(2), policy.noise_shape)
    scaled = noise[:, -9:].reshape(2, 3, 3).transpose(1, 2).numpy()
    low, high = np.array(policy.robot.action.low), np.array(policy.robot.action.high)
    expected = (low + high) / 2 + scaled * np.where(high > low, (high - low) / 2, 1)
    assert fresh.act(observed(2), noise).numpy() == pytest.approx(expected, abs=1e-6)


def test_network_of_a_policy_has_the_observation_in_every_pass(tuned: Record) -> None:
    policy = load_policy(tuned.path)
    seen = []
    policy.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    policy.act(observed(), Streams(0).normal("noise", np.arange(3), policy.noise_shape))
    video = seen[-1][:, : 3 * 2 * 64].reshape(3, 3, 2, 8, 8)
    expected = torch.tensor([frame(1, step)[0, 0, 0] / 127.5 - 1 for step in range(3)])
    assert len(seen) == 2
    assert torch.allclose(
        video[:, :, 0], expected.float()[:, None, None, None].expand(-1, 3, 8, 8), atol=1e-6
    )
    assert policy.robot.state is not None
    own = policy.robot.state.restored(seen[0][:, 3 * 2 * 64 : 3 * 2 * 64 + 2].numpy())
    assert own == pytest.approx(np.array(observed()["state"]), abs=1e-6)


def test_finetuned_run_starts_from_the_shared_layers_of_the_run(tuned: Record, videos: Record) -> None:
    spec = load_spec(str(tuned.path))
    assert (spec.start.layers, spec.start.step, spec.backbone.size) == ("shared", 0, "2x32x2")
    start, first = ema(videos), ema(tuned, 1)
    new = {name for name in first if is_of_further_parts(name)}
    assert new and not new & start.keys()
    decay = 2 / 11
    for name in first.keys() - new - {"pos_embed"}:
        # One AdamW step changes a weight by the learning rate at most, and the average by its share.
        assert (first[name] - start[name]).abs().max() <= (1 - decay) * spec.train.learning_rate * 1.01, name


def test_frozen_features_keep_their_bits_and_new_layers_learn(
    root: Path, demos: Path, videos: Record, tuned: Record
) -> None:
    spec = finetune_spec(str(videos.path), demos, "push", frozen=True, overrides=SMALL)
    frozen = trained(spec, root / "frozen")
    start, end = ema(videos), ema(frozen)
    shared = {name for name in end if not is_of_further_parts(name)} - {"pos_embed"}
    assert all(torch.equal(end[name], start[name]) for name in shared)
    assert end["final_layer.linear_beside.1.weight"].any()
    assert len({spec.id, tuned.path.name, videos.path.name}) == 3


def test_interrupted_finetuning_ends_with_the_same_bits(
    root: Path, demos: Path, videos: Record, tuned: Record
) -> None:
    spec = finetune_spec(str(videos.path), demos, "push", overrides=SMALL)
    folder = root / "resumed" / spec.id
    shutil.copytree(tuned.path, folder)
    (folder / "done").unlink()
    checkpoint_files.path_of(folder / "checkpoints", 2).unlink()
    resumed = trained(spec, root / "resumed")
    assert checkpoint.digest(ema(resumed)) == checkpoint.digest(ema(tuned))
    assert everything(resumed) == everything(tuned)


def test_policy_from_scratch_has_the_backbone_of_the_run(demos: Path, videos: Record) -> None:
    spec = finetune_spec(str(videos.path), demos, "push", from_scratch=True, overrides=SMALL)
    assert not spec.start.weights and spec.backbone == load_spec(str(videos.path)).backbone
    assert spec.data.task == "push" and spec.method.name == "flow"
    assert finetune_spec("demos", demos, "push", from_scratch=True).data.chunk == 6


def test_policy_predicts_what_the_network_of_its_source_does(demos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.toml"
    source.write_text('base = "demos"\nflow.prediction = "x"\n')
    found = finetune_spec(str(source), demos, "push", from_scratch=True, overrides=SMALL)
    assert found.flow.prediction == "x"


def test_start_refuses_to_lose_layers_between_blocks(demos: Path, videos: Record) -> None:
    """A fusion of SPRINT changes the features; a second final layer only reads them."""
    spec = finetune_spec(str(videos.path), demos, "push", overrides=SMALL)
    model = network_of(backbone_config(spec, open_dataset(spec.data)))
    weights, file = ema(videos), Path("start.safetensors")
    extra = torch.zeros(1)
    shared_weights(model, weights | {"final_layers.1.linear.bias": extra}, file)
    for name in ("fusions.2.mask_token", "blocks.2.attn.qkv.bias"):
        with pytest.raises(UserError, match=rf"has {name}, which this network lacks"):
            shared_weights(model, weights | {name: extra}, file)


def test_cost_of_frozen_features_is_that_of_what_trains(demos: Path, videos: Record) -> None:
    """The same network and data, of which the layers of state and actions train alone."""
    every, frozen = (
        finetune_spec(str(videos.path), demos, "push", frozen=frozen, overrides=SMALL)
        for frozen in (False, True)
    )
    model = network_of(backbone_config(frozen, open_dataset(frozen.data)))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    new = sum(size for name, size in sizes.items() if is_of_further_parts(name))
    costs = {spec.start.frozen: count_spec(spec) for spec in (every, frozen)}
    assert costs[True].parameters == costs[False].parameters == sum(sizes.values())
    # AdamW keeps two moments of what it trains.
    assert costs[True].saved_numbers == sum(sizes.values()) + 2 * new
    assert costs[True].per_step["optimizer"] / costs[False].per_step["optimizer"] == new / sum(sizes.values())
    assert costs[True].per_step["student"] < costs[False].per_step["student"]
    memory = footprint(frozen)
    assert (memory.gradients, memory.optimizer, memory.weights) == (4 * new, 8 * new, 4 * sum(sizes.values()))
    assert memory.peak < footprint(every).peak and footprint(frozen, 2).peak < footprint(every, 2).peak


def test_frozen_needs_weights_and_further_parts(demos: Path) -> None:
    scratch = finetune_spec("demos", demos, "push", from_scratch=True).model_dump(mode="json")
    with pytest.raises(UserError, match=r"start\.frozen = true freezes the weights of"):
        resolve(merge(scratch, {"start": {"frozen": True}}))
    with pytest.raises(UserError, match=r"but these data \(image\) have one part; leave it out"):
        load_spec("digits", ("start.frozen=true",))


def test_command_names_what_is_missing(demos: Path, videos: Record, tmp_path: Path) -> None:
    cases = {
        ("demos", "--task", "push"): "demos is no run directory with weights",
        ("nothing", "--task", "push"): "no such run directory: nothing",
        (videos.path, "--task", "pull"): "has demonstrations of 'push'",
        (videos.path, "--task", "push", "--from-scratch", "--frozen"): "leave out --frozen",
        (videos.path, "--task", "push", "--step", "7"): "has no checkpoint at step 7",
        (videos.path, "--task", "push", "--set", "method.name=repa"): "reads one modality",
        (videos.path, "--task", "push", "--set", "method.name=attention_separation"): "given tokens",
        (videos.path, "--task", "push", "--set", "backbone.patch=2"): "give the same backbone",
    }
    for (source, *options), message in cases.items():
        done = flowrace(
            "finetune", source, *options, "--demos", demos, "--out", tmp_path, "--no-track", "--quiet"
        )
        assert isinstance(done.exception, UserError), (source, options, done.output)
        assert message in str(done.exception)


def test_run_without_actions_is_no_policy(videos: Record, tuned: Record, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has no {FILE}, so it generates no actions"):
        load_policy(videos.path)
    broken = tmp_path / tuned.path.name
    shutil.copytree(tuned.path, broken)
    (broken / FILE).write_text('{"action": {"low": [0], "high": [1]}}')
    with pytest.raises(UserError, match="is not the layout of a policy"):
        load_policy(broken)


def test_observation_of_another_size_is_refused(tuned: Record) -> None:
    policy = load_policy(tuned.path)
    noise = torch.zeros(3, *policy.noise_shape)
    larger = np.zeros((3, 16, 16, 3), np.uint8)
    for changed, message in (
        ({"image": larger}, "are 16x16 pixels, but those of the demonstrations 8x8"),
        ({"image": larger.astype(np.float32)}, "expected uint8"),
        ({"state": np.zeros((3, 5))}, "has 2 numbers"),
    ):
        with pytest.raises(UserError, match=message):
            policy.act({**observed(), **changed}, noise)  # pyright: ignore[reportArgumentType]
    resizing: NetworkPolicy = replace(policy, resizes=True)
    assert resizing.act({**observed(), "image": larger}, noise).shape == (3, 3, 3)


def test_identity_of_a_policy_is_that_of_its_weights(tuned: Record, tmp_path: Path) -> None:
    """Two files of the same EMA, of which one has the state of training too, give one identity."""
    task = open_task("open-and-place:open").task
    moved = tmp_path / tuned.path.name
    shutil.copytree(tuned.path, moved)
    whole = run_acting(moved, task, None, 2, None)
    file = checkpoint_of_run(moved, None)
    loaded = checkpoint.load(file)
    ema_only = {f"ema.{name}": tensor for name, tensor in loaded.part("ema").items()}
    checkpoint.save(file, ema_only, loaded.meta)
    alone = run_acting(moved, task, None, 2, None)
    assert alone.name == whole.name
    assert whole.name == f"{moved.name}/{file.stem}/{start_digest(ema(tuned))[:16]}"
    assert run_acting(moved, task, 1, 2, None).name != whole.name


def test_policy_acts_on_the_device_of_its_run(tuned: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = load_spec(str(tuned.path), ("runtime.device=cuda:99",))
    monkeypatch.setattr("harness.policy.policy.load_spec", lambda path: elsewhere)
    with pytest.raises(UserError, match=r"runtime\.device = 'cuda:99' cannot be used"):
        load_policy(tuned.path)
    assert load_policy(tuned.path, device="cpu").device_kind == "cpu"


def test_samples_of_a_policy_are_refused(tuned: Record) -> None:
    with pytest.raises(UserError, match="flowrace rollout"):
        drawing_of_run(tuned.path, load_spec(str(tuned.path)), None, 2, (), torch.device("cpu"))
