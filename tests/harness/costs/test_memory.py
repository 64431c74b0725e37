"""Memory before the fact against the allocator's own count after it, and against arithmetic on paper."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.assembly.resolve import load_spec
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import SIZES
from harness.costs.flops import count_spec
from harness.costs.memory import footprint
from tests.support.allocated import allocated

SMALL = ("backbone.size=micro", "train.batch_size=32", "method.name=flow")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("keeps", [True, False])
def test_activations_are_what_the_allocator_sees(precision: str, keeps: bool) -> None:
    """A real step of flow matching, written out here."""
    spec = load_spec(
        "digits",
        (*SMALL, f"train.precision={precision}", f"runtime.checkpoint_activations={not keeps}".lower()),
    )
    model = SiT(SiTConfig(SIZES["micro"], 2, (1, 8, 8), 10))
    model.checkpoint_activations = not keeps
    for block in model.blocks:
        block.attn.fused = True  # as on the device that is planned for
    x, eps, t = torch.randn(32, 1, 8, 8), torch.randn(32, 1, 8, 8), torch.rand(32)
    y = torch.zeros(32, dtype=torch.int64)
    from harness.backbone.times import Times

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            x_t = (1 - t.reshape(-1, 1, 1, 1)) * x + t.reshape(-1, 1, 1, 1) * eps
            loss = (model(x_t, Times.per_sample(t), y).velocity.float() - (eps - x)).square().mean()
        loss.backward()

    step()
    model.zero_grad(set_to_none=True)
    assert footprint(spec).activations == pytest.approx(allocated(step), rel=0.1)


def test_what_stays_is_four_bytes_a_parameter_each() -> None:
    spec = load_spec("digits", SMALL)
    found, parameters = footprint(spec), count_spec(spec).parameters
    assert (
        found.ema == found.weights == found.gradients == 4 * parameters and found.optimizer == 8 * parameters
    )
    assert found.peak == 16 * parameters + found.activations


def test_processes_and_micro_batches_share_the_activations() -> None:
    big = ("backbone.size=pico", "train.batch_size=256", "method.name=self_flow")
    whole = footprint(load_spec("digits", big))
    shared, parts = (
        footprint(load_spec("digits", big), 4),
        footprint(load_spec("digits", (*big, "train.accumulate=4"))),
    )
    assert whole.activations == pytest.approx(4 * parts.activations, rel=0.1)
    # A process of several has room for all gradients from the first step on.
    assert parts.activations <= shared.activations <= parts.activations + parts.gradients


@pytest.mark.parametrize("shard", [False, True])
def test_a_divided_step_holds_its_slices_and_a_few_blocks(tmp_path: Path, shard: bool) -> None:
    """Two processes of torchrun, and what the first one's allocator saw: DDP's share to 1e-3, FSDP2's within
    a tenth."""
    settings = (
        "backbone.size=S",
        "train.batch_size=64",
        "method.name=self_flow",
        f"runtime.shard={shard}".lower(),
    )
    file = tmp_path / "bytes"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command += ["-m", "tests.support.sharded_step", str(file), *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    predicted = footprint(load_spec("digits", settings), 2).activations
    assert predicted == pytest.approx(int(file.read_text()), rel=0.1 if shard else 1e-3)
