"""The Frechet distance, streamed statistics and features: ours against the usual alternatives, interleaved.

    python -m benchmarks.metrics --weights mobilenetv2_imagenet.ts
        [--dim 2048] [--samples 50000] [--images 10000] [--rounds 3]

A round times each side once, in one process; ratios are taken within rounds. The peak memory is that of a
separate process that streams the statistics. Without --weights, features are left out. Writes
benchmarks/results/metrics.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.runtime.environment import device_name, package_version
from metrics import Moments, frechet_distance, load_extractor

BATCH = 500
"""The number of features, and of images, in a batch."""


def batches(samples: int, dim: int) -> Iterator[np.ndarray]:
    """Yield random features, float32 (BATCH, dim)."""
    random = np.random.default_rng(0)
    for start in range(0, samples, BATCH):
        yield random.standard_normal((min(BATCH, samples - start), dim), dtype=np.float32)


def streamed(parts: Iterator[np.ndarray]) -> Moments:
    moments = Moments()
    for part in parts:
        moments.add(part)
    return moments


def frechet(dim: int, rounds: int) -> dict[str, Any]:
    """Compare symmetric eigenvalues with scipy's matrix square root, on two covariances of full rank."""
    from scipy.linalg import sqrtm

    random = np.random.default_rng(1)
    first = streamed(batches(dim + 2 * BATCH, dim))
    second = Moments()
    second.add(1.1 * random.standard_normal((dim + 2 * BATCH, dim)) + 0.1)

    def by_sqrtm() -> float:
        shift = first.mean - second.mean
        root = sqrtm(first.covariance @ second.covariance).real
        return float(
            shift @ shift + np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.trace(root)
        )

    seconds, values = timed({"ours": lambda: frechet_distance(first, second).mean, "sqrtm": by_sqrtm}, rounds)
    return {
        "what": f"Frechet distance from two covariances, d = {dim}, float64",
        "median_seconds": medians(seconds),
        "ratios": {"sqrtm / ours": ratio(seconds["sqrtm"], seconds["ours"])},
        "relative_difference": abs(values["ours"] - values["sqrtm"]) / values["sqrtm"],
    }


def moments(samples: int, dim: int, rounds: int) -> dict[str, Any]:
    """Compare mean and covariance streamed in batches with numpy.cov of all rows, both from float32."""
    features = np.concatenate(list(batches(samples, dim)))
    parts = np.array_split(features, range(BATCH, samples, BATCH))
    sides = {
        "ours": lambda: streamed(iter(parts)).covariance,
        "numpy.cov": lambda: np.cov(features, rowvar=False),
    }
    seconds, values = timed(sides, rounds)
    return {
        "what": f"mean and covariance of {samples} x {dim} features, in batches of {BATCH}, float64",
        "median_seconds": medians(seconds),
        "ratios": {"ours / numpy.cov": ratio(seconds["ours"], seconds["numpy.cov"])},
        "largest_difference": float(np.abs(values["ours"] - values["numpy.cov"]).max()),
    }


def peak_bytes(samples: int, dim: int) -> int:
    """Return the peak memory of a process that only streams features into statistics."""
    command = [sys.executable, "-m", "benchmarks.metrics", "--peak"]
    result = subprocess.run(
        [*command, "--samples", str(samples), "--dim", str(dim)], capture_output=True, text=True, check=True
    )
    return int(result.stdout)


def features(weights: Path, images: int) -> dict[str, Any]:
    """Measure MobileNetV2 at 96x96 pixels on random images of 32x32."""
    extract = load_extractor(f"torchscript:{weights}?size=96&dim=1280")
    random = torch.Generator().manual_seed(0)
    # Warm up.
    extract(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=random))
    begun = time.perf_counter()
    for start in range(0, images, BATCH):
        shape = (min(BATCH, images - start), 3, 32, 32)
        extract(torch.randint(0, 256, shape, dtype=torch.uint8, generator=random))
    seconds = time.perf_counter() - begun
    return {
        "what": f"features of {images} images, {extract.name}",
        "seconds": round(seconds, 2),
        "images_per_second": round(images / seconds, 1),
    }


def timed(sides: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return the seconds of each side, round by round, and its last result."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, Any] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            begun = time.perf_counter()
            values[name] = side()
            seconds[name].append(time.perf_counter() - begun)
    return seconds, values


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
    }


def main() -> None:
    options = _options()
    if options.peak:
        streamed(batches(options.samples, options.dim))
        # Linux reports it in KiB.
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    found = {
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "numpy": package_version("numpy"),
        "scipy": package_version("scipy"),
        "rounds": options.rounds,
        "frechet": frechet(options.dim, options.rounds),
        "moments": moments(options.samples, options.dim, options.rounds)
        | {"peak_bytes": peak_bytes(options.samples, options.dim)},
    }
    if options.weights:
        found["features"] = features(options.weights, options.images)
    print(json.dumps(found, indent=1))
    options.out.write_text(json.dumps(found, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="MobileNetV2 as a TorchScript file")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "metrics.json")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
