"""A study of three methods, two learning rates and three seeds, with exact power laws."""

from __future__ import annotations

from pathlib import Path

from tests.reports.synthetic import power_law, write_run

TARGET = 30.0
STEPS = {
    "flow": {0.001: 1200.0, 0.01: 400.0},
    "repa": {0.001: 1000.0, 0.01: 600.0},
    "sra": {0.001: 1500.0, 0.01: 500.0},
}
"""Steps to target by method and learning rate. The best cell of repa (600) beats the baseline's first arm
(1200) twofold, but over both cells repa is slower: sqrt(1200 / 1000 * 400 / 600) = 0.894."""
OF_SEED = (1.0, 1.02, 0.97)
"""Factors of the baseline's steps by seed."""


def write_study(folder: Path, steps: dict[str, dict[float, float]] = STEPS, extra: str = "") -> Path:
    """Write 3 methods x 2 learning rates x 3 seeds with exact power laws."""
    for method, by_rate in steps.items():
        for rate, step in by_rate.items():
            for seed, own in enumerate(OF_SEED):
                reached = step * (own if method == "flow" else 1.0)
                curve = power_law(TARGET * reached**0.5, 0.5)
                path = folder / f"{method}-{rate}-{seed}"
                write_run(path, method, seed, metric=curve, set_={"train.learning_rate": rate})
    text = f'name = "rates"\nbaseline = "flow"\n[target]\nvalue = {TARGET}\n{extra}'
    (folder / "study.toml").write_text(text)
    return folder
