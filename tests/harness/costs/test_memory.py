"""Estimated memory, against the count of the allocator and arithmetic on paper."""

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
from harness.backbone.times import Times
from harness.costs.flops import count_spec
from harness.costs.memory import footprint
from tests.support.allocated import allocated

SMALL = ("backbone.size=micro", "train.batch_size=32", "method.name=flow")


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("keeps", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_activations_equal_those_of_the_allocator(precision: str, keeps: bool) -> None:
    """The allocator counts a real step of flow matching, which is written out here."""
    spec = load_spec(
        "digits",
        (*SMALL, f"train.precision={precision}", f"runtime.checkpoint_activations={not keeps}".lower()),
    )
    model = SiT(SiTConfig(SIZES["micro"], 2, (1, 8, 8), 10))
    model.checkpoint_activations = not keeps
    # The estimate is for the fused attention of a GPU.
    for block in model.blocks:
        block.attn.fused = True
    x, eps, t = torch.randn(32, 1, 8, 8), torch.randn(32, 1, 8, 8), torch.rand(32)
    y = torch.zeros(32, dtype=torch.int64)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            x_t = (1 - t.reshape(-1, 1, 1, 1)) * x + t.reshape(-1, 1, 1, 1) * eps
            loss = (model(x_t, Times.per_sample(t), y).velocity.float() - (eps - x)).square().mean()
        loss.backward()

    step()
    model.zero_grad(set_to_none=True)
    assert footprint(spec).activations == pytest.approx(allocated(step), rel=0.1)


def test_weights_gradients_and_ema_take_four_bytes_per_parameter_each() -> None:
    spec = load_spec("digits", SMALL)
    found, parameters = footprint(spec), count_spec(spec).parameters
    assert (
        found.ema == found.weights == found.gradients == 4 * parameters and found.optimizer == 8 * parameters
    )
    assert found.peak == 16 * parameters + found.activations


@pytest.mark.slow
def test_processes_and_micro_batches_divide_the_activations() -> None:
    settings = ("backbone.size=pico", "train.batch_size=256", "method.name=self_flow")
    full = footprint(load_spec("digits", settings))
    split = footprint(load_spec("digits", settings), 4)
    accumulated = footprint(load_spec("digits", (*settings, "train.accumulate=4")))
    assert full.activations == pytest.approx(4 * accumulated.activations, rel=0.1)
    # With several processes, buckets for all gradients exist from the first step on.
    assert accumulated.activations <= split.activations <= accumulated.activations + accumulated.gradients


@pytest.mark.slow
@pytest.mark.parametrize(("shard", "precision"), [(False, "float32"), (True, "float32"), (True, "bfloat16")])
def test_activations_per_rank_equal_those_of_the_allocator(
    tmp_path: Path, shard: bool, precision: str
) -> None:
    """The allocator is that of rank 0 of two processes: equal to 1e-3 with DDP, to a tenth with FSDP2.

    In bfloat16 a rank that kept rounded copies of all blocks would have 43 MB more.
    """
    settings = (
        "backbone.size=S",
        "train.batch_size=64",
        "method.name=self_flow",
        f"runtime.shard={shard}".lower(),
        f"train.precision={precision}",
    )
    file = tmp_path / "bytes"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command += ["-m", "tests.support.sharded_step", str(file), *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    predicted = footprint(load_spec("digits", settings), 2).activations
    assert predicted == pytest.approx(int(file.read_text()), rel=0.1 if shard else 1e-3)


@pytest.mark.slow
def test_step_that_needs_most_counts_if_a_route_ends() -> None:
    words = [SMALL[0], "train.batch_size=256", "train.steps=9", "method.name=tread"]
    routed, ended, never = (
        footprint(load_spec("digits", [*words, *more])).activations
        for more in ([], ["method.schedule.until=4"], ["method.schedule.until=0"])
    )
    assert routed < ended == never


@pytest.mark.slow
def test_log_of_gradients_takes_a_copy_for_each_of_the_two() -> None:
    """Both gradients of the backbone exist next to the step's own, while the pass's activations are gone."""
    words = (*SMALL[:2], "method.name=self_flow")
    plain, log = (load_spec("digits", (*words, *more)) for more in ((), ("train.log_gradients_every=5",)))
    added = footprint(log).activations - footprint(plain).activations
    assert added == pytest.approx(2 * 4 * count_spec(plain).parameters, rel=0.05)
