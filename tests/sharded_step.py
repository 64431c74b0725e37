"""What a process of torchrun does for tests/test_footprint.py: a step of a run, and the most bytes it took, written to a file.

torchrun --nproc-per-node=N -m tests.sharded_step FILE SETTING...
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from harness.batch import Batch
from harness.data.base import open_dataset, split
from harness.draws import Streams
from harness.resolve import load_spec
from harness.run import build
from tests.allocated import allocated


def main(file: str, *settings: str) -> None:
    dist.init_process_group("gloo")
    spec = load_spec("digits", settings)
    dataset, processes = open_dataset(spec.data), dist.get_world_size()
    mesh = init_device_mesh("cpu", (processes,)) if spec.runtime.shard else None
    run = build(spec, dataset, split(dataset, spec.data.held_out), torch.device("cpu"), mesh)
    share = spec.train.batch_size // processes
    labels = torch.zeros(share, dtype=torch.int64)
    batch = Batch(np.arange(share), torch.zeros(share, *run.model.config.x_shape), labels, labels)
    draw = run.method.draw(Streams(0), batch)

    def step() -> None:
        run.method.loss(run.student, batch, draw).total.backward()

    step()
    run.optimizer.zero_grad(set_to_none=True)
    taken = allocated(step)
    if dist.get_rank() == 0:
        Path(file).write_text(str(taken))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
