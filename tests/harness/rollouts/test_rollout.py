"""Rollouts: common starts and noise, batches, the record, and interrupted commands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from harness.environments.base import open_task
from harness.environments.demonstrations import write_demonstrations
from harness.environments.play import Expert, play
from harness.errors import UserError
from harness.records import rollouts
from harness.records.rollouts import Rollout, read_rollout
from harness.rollouts.named import named_rollout
from harness.rollouts.rollout import (
    FIRST,
    Acting,
    expert_acting,
    policy_acting,
    random_acting,
    replay_acting,
    results_of,
    roll_out,
)
from harness.runtime.random_streams import Streams
from tests.support.commands import flowrace
from tests.support.demonstrations import write
from tests.support.forked import die, in_child

TASK, BATCH = "open-and-place:open", 4


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Use one thread: a forked process would wait for those of its parent."""
    torch.set_num_threads(1)


class LinearPolicy:
    """A network of one layer over the frame, the state and the noise, with chunks of three actions."""

    chunk, action_size, noise_shape = 3, 3, (3, 2)
    observes_frames, device_kind = True, "cpu"

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(9, 32 * 32 * 3 + 4 + 6, generator=generator) / 40
        self.noises: list[torch.Tensor] = []

    # Any: the protocol's observation.
    def act(self, observation: Any, noise: torch.Tensor) -> torch.Tensor:
        self.noises.append(noise)
        image = torch.from_numpy(observation["image"]).float().flatten(1) / 255
        state = torch.from_numpy(observation["state"])
        return (torch.cat([image, state, noise.flatten(1)], 1) @ self.weight.T).view(-1, 3, 3) / 20


def rolled(policy: LinearPolicy, count: int, out: Path, name: str = "policy", batch: int = BATCH) -> Rollout:
    environments = open_task(TASK)
    return roll_out(environments, policy_acting(policy, name, environments.task, batch), count, out, batch)


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_arms_with_equal_weights_are_equal_episode_by_episode(tmp_path: Path) -> None:
    one, same, other = (
        rolled(LinearPolicy(seed), 6, tmp_path / name, name)
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one.episodes == same.episodes
    assert [episode.seed for episode in one.episodes] == list(range(FIRST, FIRST + 6))
    assert all(a.actions != b.actions for a, b in zip(one.episodes, other.episodes, strict=True))


def test_every_arm_has_the_noise_of_its_start_and_plan(tmp_path: Path) -> None:
    arms = [LinearPolicy(0), LinearPolicy(1)]
    for number, policy in enumerate(arms):
        rolled(policy, BATCH, tmp_path / str(number))
    # The horizon is 50 steps, which 17 chunks of three cover.
    assert [len(policy.noises) for policy in arms] == [17, 17]
    for plan in range(17):
        expected = Streams(0).normal(f"rollout_noise/{plan}", range(FIRST, FIRST + BATCH), (3, 2))
        assert all(torch.equal(policy.noises[plan], expected) for policy in arms)


def test_episodes_do_not_depend_on_how_many_are_played_or_when(tmp_path: Path) -> None:
    at_once = rolled(LinearPolicy(0), 6, tmp_path / "once")
    for count in (1, 6):
        grown = rolled(LinearPolicy(0), count, tmp_path / "grown")
        assert grown.episodes == at_once.episodes[:count]
    assert rolled(LinearPolicy(0), 2, tmp_path / "once").episodes == at_once.episodes[:2]


def test_policy_plans_again_after_its_chunk() -> None:
    environments = open_task(TASK)

    class Counted(Expert):
        chunk, steps = 4, ()

        def plan(self, environments: Any, step: int) -> np.ndarray:
            self.steps += (step,)
            return environments.expert()[:, None].repeat(4, axis=1)

    actor = Counted()
    played = list(play(environments, range(3), actor))
    assert actor.steps == tuple(range(0, max(one.steps for one in played), 4))


def dying(call: int, how: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return a `sync_file` that does something else at one call, and dies."""
    sync, calls = rollouts.sync_file, [0]

    def killed(file: Any) -> None:
        if calls[0] == call:
            how(file)
            die()
        calls[0] += 1
        sync(file)

    return killed


def torn(file: Any) -> None:
    file.flush()
    file.truncate(file.tell() - 9)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    rolled(LinearPolicy(0), 6, out)
    return out


@pytest.mark.parametrize(("call", "how"), [(0, torn), (5, torn), (3, lambda _: None)])
def test_killed_rollout_continues_to_the_bytes_of_an_uninterrupted_one(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, how: Callable[[Any], None]
) -> None:
    monkeypatch.setattr(rollouts, "sync_file", dying(call, how))
    assert in_child(lambda: rolled(LinearPolicy(0), 6, tmp_path / "killed")) == -9
    monkeypatch.undo()
    rolled(LinearPolicy(0), 6, tmp_path / "killed")
    assert bytes_of(tmp_path / "killed") == bytes_of(unbroken)


def test_finished_rollout_plays_nothing(tmp_path: Path) -> None:
    rolled(LinearPolicy(0), 5, tmp_path)
    again = LinearPolicy(0)
    rolled(again, 5, tmp_path)
    assert again.noises == []


def test_record_of_other_conditions_or_results_is_not_continued(tmp_path: Path) -> None:
    rolled(LinearPolicy(0), 3, tmp_path)
    before = bytes_of(tmp_path)
    with pytest.raises(UserError, match="under other conditions; give another --out"):
        rolled(LinearPolicy(0), 3, tmp_path, name="another")
    with pytest.raises(UserError, match=r"start 10000\d ends differently than recorded"):
        rolled(LinearPolicy(1), 4, tmp_path)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("rollout.json", lambda text: text[:-9], "is not JSON"),
        ("rollout.json", lambda text: text.replace('"batch": 4', '"batch": "4"'), "'batch' is invalid"),
        (
            "rollout.json",
            lambda text: text.replace("horizon", "horizons"),
            "exactly the fields task, version",
        ),
        ("episodes.jsonl", lambda text: text.replace("false", "0", 1), "line 1: the field 'success' is"),
        ("episodes.jsonl", lambda text: text.replace('"opened"', '"open"', 1), "line 1 is not an episode"),
        ("episodes.jsonl", lambda text: text + text, "line 3 is not an episode of this record"),
        ("episodes.jsonl", lambda text: "[]\n", "line 1 does not have exactly the fields"),
    ],
)
def test_damaged_record_is_named(tmp_path: Path, file: str, change: Callable[[str], str], match: str) -> None:
    rolled(LinearPolicy(0), 2, tmp_path)
    place = tmp_path / file
    place.write_text(change(place.read_text()))
    with pytest.raises(UserError, match=match):
        read_rollout(tmp_path)


def test_policy_with_other_actions_or_without_numbers_is_an_error(tmp_path: Path) -> None:
    task = open_task(TASK).task
    wide, damaged = LinearPolicy(0), LinearPolicy(0)
    wide.action_size = 7
    with pytest.raises(UserError, match=r"7 numbers in an action, but task 'open-and-place:open' takes 3"):
        policy_acting(wide, "wide", task, BATCH)
    damaged.weight[4] = torch.nan
    with pytest.raises(UserError, match="is not a finite number"):
        rolled(damaged, 2, tmp_path)


def test_policy_that_observes_frames_needs_a_task_that_draws_them() -> None:
    policy, task = LinearPolicy(0), replace(open_task(TASK).task, frame=(0, 0, 3))
    with pytest.raises(UserError, match="observes frames, but task 'open-and-place:open' draws none"):
        policy_acting(policy, "blind", task, BATCH)
    policy.observes_frames = False
    assert policy_acting(policy, "blind", task, BATCH).name == "blind"


def test_device_of_a_network_is_a_condition_and_earlier_records_have_none(tmp_path: Path) -> None:
    policy = LinearPolicy(0)
    found = rolled(policy, 1, tmp_path / "new").conditions
    assert found.device == "cpu"
    policy.device_kind = "cuda"
    with pytest.raises(UserError, match="under other conditions"):
        rolled(policy, 1, tmp_path / "new")
    file = tmp_path / "new" / "rollout.json"
    fields = json.loads(file.read_text())
    del fields["device"]
    file.write_text(json.dumps(fields))
    earlier = read_rollout(tmp_path / "new").conditions
    assert earlier == replace(found, device="")
    # The key of earlier versions, over the fields that they had.
    text = json.dumps(fields, sort_keys=True).encode()
    assert earlier.key == hashlib.sha256(text).hexdigest()[:8] != found.key


def test_checks_have_their_known_results(tmp_path: Path) -> None:
    """The expert and its recorded actions always succeed, and random actions never do."""
    environments = open_task(TASK)
    write_demonstrations(environments, 5, tmp_path / "demos")
    task = environments.task
    for name, acting, success in (
        ("expert", expert_acting(task), 1.0),
        ("random", random_acting(task), 0.0),
        ("replay", replay_acting(task, tmp_path / "demos"), 1.0),
    ):
        found = results_of(roll_out(environments, acting, 5, tmp_path / name, BATCH))
        assert found.success.mean == success
    with pytest.raises(UserError, match="has no episode 5; give a smaller -n"):
        roll_out(environments, replay_acting(task, tmp_path / "demos"), 6, tmp_path / "replay", BATCH)
    other = open_task("open-and-place").task
    with pytest.raises(UserError, match="not of task 'open-and-place'"):
        replay_acting(other, tmp_path / "demos")


def test_replays_of_other_actions_are_other_policies(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    task = open_task(TASK).task
    (tmp_path / "meta" / "recipe.json").write_text(json.dumps({"task": task.name, "version": task.version}))
    names = []
    for last in (0.0, 0.0, 1.0):
        write(tmp_path, {"action": [[0.0, 0.0, 0.5], [0.0, 0.0, last]]}, "episode_000000")
        names.append(replay_acting(task, tmp_path).name)
    assert names[0] == names[1] != names[2]


def test_task_without_an_expert_is_an_error() -> None:
    task = replace(open_task(TASK).task, expert=False)
    with pytest.raises(UserError, match="has no scripted expert; give a run, random"):
        expert_acting(task)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    """A rollout of an expert that drops every second block, so that stages differ."""
    environments = open_task("open-and-place")

    class Careless(Expert):
        def plan(self, environments: Any, step: int) -> np.ndarray:
            actions = super().plan(environments, step)
            actions[::2, :, 2] = np.where(step > 22, -1.0, actions[::2, :, 2])
            return actions

    acting = Acting("careless", lambda seeds: Careless())
    return roll_out(environments, acting, 20, tmp_path_factory.mktemp("mixed"), 20)


def test_shares_have_wilsons_interval(mixed: Rollout) -> None:
    found, n = results_of(mixed), len(mixed.episodes)
    counts = {"success": sum(episode.success for episode in mixed.episodes)}
    counts |= {
        name: sum(episode.stages[name] is not None for episode in mixed.episodes) for name in found.stages
    }
    assert 0 < counts["both"] < counts["opened"] and counts["success"] == counts["both"]
    for name, value in {"success": found.success, **found.stages}.items():
        expected = binomtest(counts[name], n).proportion_ci(method="wilson")
        assert value.mean == counts[name] / n
        assert (value.low, value.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_stages_of_an_episode_are_the_first_steps_at_which_they_held(mixed: Rollout) -> None:
    for episode in mixed.episodes:
        steps = [step for step in episode.stages.values() if step is not None]
        assert all(1 <= step <= episode.steps for step in steps)
        assert (episode.stages["both"] == episode.steps) == episode.success
        assert 0 < episode.largest_reward <= 1 and (episode.largest_reward == 1) == episode.success


def test_command_prints_json_and_the_folder_of_the_record(tmp_path: Path) -> None:
    words = ("rollout", "expert", "--task", TASK, "-n", 3, "--out", tmp_path)
    found = json.loads(flowrace(*words, "--json").output)
    assert {"success", "low", "high", "stages", "largest_reward", "n"} <= found.keys()
    assert found["stages"]["opened"]["success"] == found["success"] == 1.0 and found["n"] == 3
    last = flowrace(*words).output.splitlines()[-1]
    assert last == found["out"] and len(read_rollout(Path(last)).episodes) == 3


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [(0, 5, "n = 0"), (100_001, 5, "n = 100001"), (1, 0, "batch = 0"), (1, -3, "batch = -3")],
)
def test_numbers_that_play_no_episode_are_errors(
    tmp_path: Path, count: int, batch: int, expected: str
) -> None:
    with pytest.raises(UserError, match=f"{expected}: expected 1 to"):
        named_rollout("random", "open-and-place", count, tmp_path, batch=batch)
    assert not list(tmp_path.iterdir())


def test_words_that_fit_no_policy_are_errors(tmp_path: Path) -> None:
    for words, match in (
        (("exper",), "is no run directory; give RUN, expert, random or replay:DEMOS"),
        (("expert", "--film", "film.png"), "--film film.png: give a file that ends in .mp4"),
        (("expert", "--step", 3), "chooses a checkpoint of a run, and 'expert' is none"),
        (("random", "--device", "cpu"), "chooses the device of a run, and 'random' is none"),
        ((f"replay:{tmp_path}",), "expected a folder that flowrace data demos has written"),
    ):
        found = flowrace("rollout", *words, "--task", TASK, "--out", tmp_path / "out")
        assert match in str(found.exception), match
