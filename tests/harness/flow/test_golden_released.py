"""Samples of REPA's released MMDiT at other depths, patches, text lengths and seeds than the golden files'.

`released_mmdit.json` has every 251st value of samples of sihyun-yu/REPA 67f7145, models/mmdit.py and
samplers_t2i.py, which ran unchanged in float32 on the weights and inputs below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from harness.flow.golden import KINDS, TOLERANCE, Golden
from tests.support.plain_mmdit import random_state

FILE = Path(__file__).with_name("released_mmdit.json")
STRIDE, GRID, DIM = 251, 16, 768


class Case(NamedTuple):
    """The size of a network, its inputs and its sampler. It has as many heads as blocks, each of width 32."""

    depth: int
    patch: int
    channels: int
    length: int
    batch: int
    steps: int
    scale: float
    interval: tuple[float, float]
    seed: int


CASES = {
    "two blocks, 77 tokens": Case(2, 2, 4, 77, 2, 4, 1.5, (0.0, 1.0), 11),
    "four blocks, one token": Case(4, 1, 3, 1, 1, 3, 4.0, (0.25, 0.75), 12),
    "three blocks, 130 tokens": Case(3, 4, 1, 130, 1, 2, 2.0, (0.0, 0.6), 13),
}


def sizes_of(case: Case) -> dict[str, int]:
    """Return the sizes of the network's weights."""
    return {
        "depth": case.depth,
        "width": 32 * case.depth,
        "channels": case.channels,
        "patch": case.patch,
        "side": GRID * case.patch,
        "dim": DIM,
    }


def inputs(case: Case) -> dict[str, Tensor]:
    """Return what a golden file of samplers has as `in.*`."""
    draws = torch.Generator().manual_seed(100 + case.seed)
    side = GRID * case.patch
    images = (case.batch, case.channels, side, side)
    shapes = {
        "z": images,
        "context": (case.batch, case.length, DIM),
        "null_context": (case.length, DIM),
        "sde_noise": (case.steps - 1, *images),
    }
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def picked(samples: Tensor) -> Tensor:
    """Return the values of samples that the file has, float64."""
    return samples.double().flatten()[::STRIDE]


@pytest.mark.parametrize("name", CASES)
def test_samples_of_other_sizes_equal_those_of_released_code(name: str) -> None:
    case = CASES[name]
    cfg = {"scale": case.scale, "low": case.interval[0], "high": case.interval[1]}
    arch = {"num_heads": case.depth, "patch_size": case.patch}
    meta = {"arch": arch, "num_steps": case.steps, "cfg": cfg}
    weights = random_state(case.seed, **sizes_of(case))
    compute = next(compute for marks, compute in KINDS if "euler_maruyama" in marks)
    with torch.no_grad():
        found = compute(Golden(FILE, weights, inputs(case), {}, meta))
    for sampler, values in json.loads(FILE.read_text())[name].items():
        expected = torch.tensor(values, dtype=torch.float64)
        assert len(expected) > 3 and (picked(found[sampler]) - expected).abs().max() <= TOLERANCE
