"""Steps of a run in a process of torchrun, with their peak memory in bytes written to a file.

For tests/harness/costs/test_memory.py.

torchrun --nproc-per-node=N -m tests.support.sharded_step FILE SETTING...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from harness.assembly.resolve import load_spec
from harness.data.open import open_dataset, split
from harness.flow.batch import Batch
from harness.runtime.distributed import World
from harness.runtime.random_streams import Streams
from harness.train.objective import Objective
from harness.train.state import build_run
from tests.support.allocated import allocated


def main(file: str, *settings: str) -> None:
    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    spec = load_spec("digits", settings)
    dataset, mesh = open_dataset(spec.data), world.mesh() if spec.runtime.shard else None
    run = build_run(spec, dataset, split(dataset, spec.data.held_out), world.device, mesh)
    share = spec.train.batch_size // world.size
    labels = torch.zeros(share, dtype=torch.int64)
    batch = Batch(np.arange(share), torch.zeros(share, *run.model.config.x_shape), labels, labels)
    draw = run.method.draw(Streams(0), batch)
    bfloat16 = spec.train.precision == "bfloat16"

    def train(steps: int) -> None:
        objective = world.wrap(Objective(run), changing=False)
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = objective(batch, draw)[0]
            loss.backward()
            run.optimizer.zero_grad(set_to_none=True)

    if spec.runtime.shard:
        train(1)  # what is made once
    taken = allocated(lambda: train(1 if spec.runtime.shard else 3))
    if world.main:
        Path(file).write_text(str(taken))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
