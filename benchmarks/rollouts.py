"""Rollouts of environments that share each batch of the network, against one environment after the other.

    python -m benchmarks.rollouts [--size micro] [--batch 50] [--steps 4] [--rounds 3] [--threads 1]

The policy is a SiT over the 64 tokens of a 32x32 frame with random weights. It draws chunks of six actions in
Euler steps and plans again after each. Both sides play the same starts of `open-and-place:open` with the same
noise, interleaved in one process. The steps of the environments alone, with and without frames, are measured
too. Writes benchmarks/results/rollouts.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.sides import machine, spread, timed
from harness.acting.network_actor import FIRST, NetworkActor
from harness.acting.policy import Observation
from harness.backbone.initialize import initialize
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES
from harness.environments.base import open_task
from harness.environments.play import Played, play
from harness.flow.samplers import euler, velocity_field
from harness.runtime.environment import prepare
from harness.runtime.random_streams import Streams

RESULTS = Path(__file__).parent / "results"
TASK, SIDE = "open-and-place:open", 32
CPU = torch.device("cpu")


class SitPolicy:
    """Chunks of actions from Euler samples of a SiT, which start at the frame plus noise."""

    chunk, action_size, noise_shape = 6, 3, (3, SIDE, SIDE)
    observes_frames, device_kind = True, "cpu"

    def __init__(self, size: str, steps: int) -> None:
        self._model, self._steps = SiT(SiTConfig(SIZES[size], 4, self.noise_shape, 1)), steps
        initialize(self._model, Streams(0))
        with torch.no_grad():
            # The final layer is zero, so without noise there would be no velocity.
            for name, parameter in self._model.named_parameters():
                parameter += 0.02 * Streams(0).normal(f"signal/{name}", [0], parameter.shape)[0]

    @torch.no_grad()
    def act(self, observation: Observation, noise: Tensor) -> Tensor:
        frames = torch.as_tensor(observation["image"]).permute(0, 3, 1, 2) / 255
        field = velocity_field(self._model, torch.zeros(len(noise), dtype=torch.int64), null=1)
        drawn = euler(field, frames + noise, self._steps)
        actions = drawn.float().flatten(1)[:, : self.chunk * self.action_size]
        return actions.view(-1, self.chunk, self.action_size)


def played(policy: SitPolicy, seeds: Sequence[int]) -> list[Played]:
    """Play episodes together, and return them by start."""
    actor = NetworkActor(policy, seeds, len(seeds), 0)
    return sorted(play(open_task(TASK), seeds, actor), key=lambda one: one.seed)


def environment_rate(batch: int, frames: bool) -> float:
    """Return the steps per second of environments that act by the scripted expert."""
    environments, active = open_task("open-and-place"), np.ones(batch, dtype=bool)
    environments.reset(range(batch))

    def work() -> None:
        for _ in range(50):
            environments.step(environments.expert(), active)
            if frames:
                environments.observe()

    return round(50 * batch / min(timed(work, CPU) for _ in range(3)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="micro", choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "rollouts.json")
    options = parser.parse_args()
    prepare(options.threads)
    policy, seeds = SitPolicy(options.size, options.steps), range(FIRST, FIRST + options.batch)
    sides: tuple[Callable[[], list[Played]], ...] = (
        lambda: [one for seed in seeds for one in played(policy, [seed])],
        lambda: played(policy, seeds),
    )
    # A start and its noise are the same on both sides, and the last bits of the network may differ.
    alone, together = (side() for side in sides)
    seconds = [[timed(side, CPU) for side in sides] for _ in range(options.rounds)]
    steps = sum(one.steps for one in together)
    found: dict[str, Any] = {
        "what": f"{options.batch} episodes of {TASK} by SiT-{options.size}/4, {options.steps} Euler steps "
        f"for each chunk of {policy.chunk} actions",
        "command": f"python -m benchmarks.rollouts --size {options.size} --batch {options.batch} --steps "
        f"{options.steps} --rounds {options.rounds} --threads {options.threads}",
        "rounds": options.rounds,
        **machine(CPU),
        "one by one / together, seconds": spread([a / b for a, b in seconds]),
        "steps per second, one by one": round(steps / min(a for a, _ in seconds)),
        "steps per second, together": round(steps / min(b for _, b in seconds)),
        "steps of both sides": [sum(one.steps for one in alone), steps],
        "steps per second of the environments alone": environment_rate(options.batch, frames=False),
        "the same with frames": environment_rate(options.batch, frames=True),
    }
    text = json.dumps(found, indent=1)
    print(text)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
