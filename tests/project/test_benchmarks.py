"""Benchmarks run from end to end at a small size. Their output is checked for structure, not for times."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.runs import tiny, trained


def ran(tmp_path: Path, module: str, *words: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark; return its JSON and its standard output."""
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", *words, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text()), done.stdout


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu_when_tiny(tmp_path: Path) -> None:
    from benchmarks.gpu import PARTS

    found, printed = ran(tmp_path, "gpu", "--device", "cpu", "--tiny", "--minutes", "60")
    assert found.keys() >= PARTS.keys() and not found["left_out"] and not found["failed"]
    assert not any("cut" in found[name] for name in PARTS)
    assert found["promises"]["held"] and all(found["promises"]["held"].values())
    assert len(found["promises"]["draws_sha256"]) == 64
    for part in ("middle", "large", "text"):
        assert found[part]["ratios"]["self_flow / flow"]["flops"] > 1
    assert {name.split()[0] for name in found["mfu"]} == {"SiT-pico/2", "MMDiT"}
    assert found["evaluation"]["separate / overlapped"] > 0
    assert any("self_flow / flow" in line for line in printed.splitlines())


def test_gpu_benchmark_keeps_the_results_of_a_part_that_is_cut_or_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks import gpu

    def endless(scale: object, device: object, found: dict[str, Any]) -> None:
        found["known"] = 1
        signal.pause()

    def broken(*_: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(gpu, "release", lambda _: None)
    parts = {
        "large": gpu.Part(endless, 0, 0.01),
        "text": gpu.Part(broken, 0, 60),
        "middle": gpu.Part(lambda *_: None, 0, 60),
        "memory": gpu.Part(lambda *_: None, 1e9, 60),
    }
    found: dict[str, Any] = {}
    kept: list[set[str]] = []
    ends = time.monotonic() + 600
    gpu.measured(parts, gpu.TINY, torch.device("cpu"), ends, found, lambda: kept.append(set(found)))
    assert found["large"]["known"] == 1 and found["large"]["cut"]
    assert found["text"]["error"] == "RuntimeError: no kernel image is available"
    assert "cut" not in found["middle"] and found["left_out"] == ["memory"] and found["failed"] == ["text"]
    assert [len(names & parts.keys()) for names in kept] == [1, 2, 3]
    lines = dict(line.rsplit("  ", 1) for line in gpu.summary(found).splitlines())
    assert [word.strip() for word in lines.values()] == ["large", "memory", "text"]


def test_gpu_benchmark_divides_counted_flops_by_both_peaks() -> None:
    from benchmarks.gpu import utilisation

    found = {
        "device": "NVIDIA H200",
        "scale": {"middle": "B"},
        "ceiling": {"flops_per_second": 800e12},
        "middle": {"flops": {"flow": 2e14}, "median_seconds": {"flow": 0.5}},
    }
    (name, row), *others = utilisation(found).items()
    # 4e14 FLOP/s of 989 TFLOP/s by the data sheet.
    assert name == "SiT-B/2 flow" and not others
    assert row == {"flops_per_second": 4e14, "of_products": 0.5, "mfu": 0.4044}


def test_gpu_benchmark_exits_with_2_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    from benchmarks import gpu

    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2 and "no CUDA device found" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_sampling_benchmark_compares_both_precisions_of_a_run(tmp_path: Path) -> None:
    record = trained(tiny(), tmp_path / "runs")
    found, _ = ran(tmp_path, "sampling", "--run", str(record.path), "--samples", "20")
    for name, change in found["relative difference"].items():
        assert found["bfloat16"][name] == pytest.approx((1 + change) * found["float32"][name], rel=1e-4)


@pytest.mark.slow
def test_sampling_benchmark_compares_with_the_released_loop(tmp_path: Path) -> None:
    size = ("--size", "pico", "--tokens", "16", "--batch", "2", "--steps", "2", "--rounds", "1", "--eager")
    found, _ = ran(tmp_path, "sampling", *size)
    assert set(found["released loop / ours"]) == {"float32", "bf16"}


@pytest.mark.slow
def test_text_benchmark_compares_equal_results(tmp_path: Path) -> None:
    """Every piece of work is less than the released arithmetic, by the count."""
    size = ("--size", "pico", "--tokens", "16", "--length", "5", "--batch", "4", "--rounds", "1")
    found, _ = ran(tmp_path, "text", *size)
    rows = [row for row in found.values() if isinstance(row, dict)]
    assert len(rows) == 4
    for row in rows:
        assert row["largest difference"] < 1e-4 and row["released / ours, FLOPs"] > 1


@pytest.mark.slow
def test_optimisations_do_not_change_the_loss(tmp_path: Path) -> None:
    size = ("--size", "pico", "--tokens", "16", "--batch", "2", "--rounds", "1")
    found, _ = ran(tmp_path, "before_after", *size)
    for row in found["optimisations"].values():
        with_it, without = row["loss with and without"]
        assert with_it == pytest.approx(without, rel=1e-3 if "bf16" in row["side"] else 1e-6)
        assert row["without / with"]["median"] > 0


@pytest.mark.slow
def test_rollout_benchmark_plays_the_same_episodes_on_both_sides(tmp_path: Path) -> None:
    size = ("--size", "pico", "--batch", "3", "--steps", "1", "--rounds", "1")
    found, _ = ran(tmp_path, "rollouts", *size)
    assert found["steps of both sides"] == [150, 150]
    assert found["one by one / together, seconds"]["median"] > 0


@pytest.mark.slow
def test_big_studies_benchmark_measures_every_command(tmp_path: Path) -> None:
    found, _ = ran(tmp_path, "big_studies", "--runs", "4", "6", "--folders", "2", "--evaluations")
    assert set(found["after"]) == {"4", "6", "status"}
    used = [row for rows in found["after"].values() for row in rows.values()]
    assert len(used) == 5 and all(row["cpu seconds"] > 0 and row["peak MB"] > 20 for row in used)
    ends = [found["after"][size]["audit"]["cpu seconds"] for size in ("4", "6")]
    growth = found["growth"]["audit"]["cpu seconds of a further run"]["4 to 6"]
    assert growth == pytest.approx((ends[1] - ends[0]) / 2, abs=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_evaluation_benchmark_books_every_second_on_one_phase() -> None:
    from benchmarks.evaluation import measured

    found = measured(tiny(), 1)
    phases = found["seconds by phase"]
    assert sum(phases.values()) == pytest.approx(found["seconds"], abs=0.01)
    assert phases.pop("decoding") == 0 and phases["network"] > 0
    assert sum(found["share by phase"].values()) == pytest.approx(1, abs=1e-3)
    assert found["equal values with features in another thread"]
