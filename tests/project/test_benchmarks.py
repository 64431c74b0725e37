"""Benchmarks run from end to end, small: what they time here means nothing, what they write has every
part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import tiny, trained


def ran(tmp_path: Path, module: str, *words: str) -> tuple[dict[str, Any], str]:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text()), done.stdout


def test_everything_that_wants_a_gpu_runs_without_one(tmp_path: Path) -> None:
    found, said = ran(tmp_path, "gpu", "--device", "cpu", "--tiny")
    assert {"ceiling", "large", "released", "memory", "sampling"} <= set(found) and not found["left_out"]
    assert found["large"]["ratios"]["self_flow / flow"]["flops"] > 1
    assert any("self_flow / flow" in line for line in said.splitlines()[-12:])


def test_without_a_gpu_the_benchmark_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "x.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no CUDA device found" in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_a_run_is_sampled_in_both_precisions(tmp_path: Path) -> None:
    record = trained(tiny(), tmp_path / "runs")
    found, _ = ran(tmp_path, "sampling", "--run", str(record.path), "--samples", "20")
    for name, change in found["relative difference"].items():
        assert found["bfloat16"][name] == pytest.approx((1 + change) * found["float32"][name], rel=1e-4)


def test_sampling_is_timed_against_the_plain_loop(tmp_path: Path) -> None:
    size = ("--size", "pico", "--tokens", "16", "--batch", "2", "--steps", "2", "--rounds", "1", "--eager")
    found, _ = ran(tmp_path, "sampling", *size)
    assert set(found["released loop / ours"]) == {"float32", "bf16"}


@pytest.mark.slow
def test_an_optimisation_changes_the_time_of_a_step_and_not_its_loss(tmp_path: Path) -> None:
    size = ("--size", "pico", "--tokens", "16", "--batch", "2", "--rounds", "1")
    found, _ = ran(tmp_path, "before_after", *size)
    for one in found["optimisations"].values():
        with_it, without = one["loss with and without"]
        assert with_it == pytest.approx(without, rel=1e-3 if "bf16" in one["side"] else 1e-6)
        assert one["without / with"]["median"] > 0
