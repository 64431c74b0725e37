"""Actors of a rollout by name: a run, the expert, random actions, or recorded ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.acting.network_actor import BATCH
from harness.environments.base import Task, open_task
from harness.errors import UserError
from harness.rollouts.rollout import (
    Acting,
    RolledOut,
    expert_acting,
    folder_name,
    policy_acting,
    random_acting,
    replay_acting,
    results_of,
    roll_out,
)

MOST, LARGEST_BATCH = 100_000, 1000
"""The largest number of episodes, and of environments in a batch."""


def acting_of(
    policy: str, task: Task, step: int | None, batch: int, device: str | None
) -> tuple[Acting, Path]:
    """Return what acts, and the usual folder of its records.

    `policy` is a run directory, `expert`, `random` or `replay:DEMOS`. Raises `UserError` for anything else,
    and for a step or a device of what is no run.
    """
    if policy in ("expert", "random") or policy.startswith("replay:"):
        for option, value, of in (("--step", step, "a checkpoint"), ("--device", device, "the device")):
            if value is not None:
                raise UserError(
                    f"{option} {value} chooses {of} of a run, and '{policy}' is none; leave it out"
                )
    if policy == "expert":
        return expert_acting(task), Path("rollouts")
    if policy == "random":
        return random_acting(task), Path("rollouts")
    if policy.startswith("replay:"):
        return replay_acting(task, Path(policy.removeprefix("replay:"))), Path("rollouts")
    return run_acting(Path(policy), task, step, batch, device), Path(policy) / "rollouts"


def run_acting(run: Path, task: Task, step: int | None, batch: int, device: str | None) -> Acting:
    """Return the policy of a run, named by run, step and EMA weights."""
    if not run.is_dir():
        raise UserError(f"'{run}' is no run directory; give RUN, expert, random or replay:DEMOS")
    from harness.policy.policy import load_policy
    from harness.records import checkpoint
    from harness.records.checkpoint_files import step_of
    from harness.runtime.environment import prepare
    from harness.train.state import start_digest
    from harness.train.trained_run import checkpoint_of_run, spec_of_run

    prepare(spec_of_run(run, ()).runtime.threads)
    # Resolved once, because a run that is still training may write another checkpoint meanwhile.
    file = checkpoint_of_run(run, step)
    policy = load_policy(run, step_of(file), device)
    weights = start_digest(checkpoint.load(file).part("ema"))
    name = f"{run.resolve().name}/{file.stem}/{weights[:16]}"
    return policy_acting(policy, name, task, batch)


def named_rollout(
    policy: str,
    name: str,
    count: int,
    out: Path | None = None,
    *,
    step: int | None = None,
    batch: int = BATCH,
    device: str | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> RolledOut:
    """Let a named policy act in a task at its first `count` starts, and return the record and its results.

    Raises `UserError` for a number of starts outside 1 to `MOST`, and a batch outside 1 to `LARGEST_BATCH`.
    """
    for what, given, most in (("n", count, MOST), ("batch", batch, LARGEST_BATCH)):
        if not 1 <= given <= most:
            raise UserError(f"{what} = {given}: expected 1 to {most}, for example {what}=50")
    environments = open_task(name)
    acting, usual = acting_of(policy, environments.task, step, batch, device)
    folder = (out or usual) / folder_name(environments.task, acting, batch)
    found = roll_out(environments, acting, count, folder, batch, advance)
    return RolledOut(folder, found, results_of(found))
