"""The speed of reading latents: batches as in training, from the page cache, one process, one thread.

    python -m benchmarks.latents [--samples 8192] [--batch 256] [--rounds 5]

Writes moments of ImageNet's shape (32x32x4, mean and standard deviation) into a temporary folder, reads
batches in random order and writes benchmarks/results/latents.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from harness.latents.shards import FORMAT, INDEX, MANIFEST, shard_name
from metrics.files.hashing import sha256_of

SHAPE, ROWS = (4, 32, 32), 4096


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    rounds = {}
    for dtype in ("float32", "float16"):
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), options.samples, dtype)
            rounds[dtype] = _read(Path(folder), options)
    result = {
        "what": f"latents 32x32x4 in random order, batches of {options.batch}, page cache, one process, "
        "one thread",
        "samples": options.samples,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **rounds,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for dtype, found in rounds.items():
        for name, row in found.items():
            print(
                f"{dtype} {name}: {row['samples_per_second']:.0f} samples/s, "
                f"{row['bytes_per_second'] / 1e9:.2f} GB/s"
            )


def _read(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return medians over rounds, each of which reads every sample once."""
    from harness.config.data_spec import DataSpec
    from harness.data.open import open_dataset
    from harness.runtime.random_streams import Streams

    dataset, streams = open_dataset(DataSpec(name="latents", root=str(folder))), Streams(0)
    size = sum(file.stat().st_size for file in folder.glob("shard-*.npy")) / options.samples
    noise = streams.normal("posterior", np.arange(options.batch), SHAPE)
    kinds = {
        "moments and draw": lambda index: dataset.draws(index, None, noise),
        "with its noise": lambda index: dataset.draws(index, None, streams.normal("posterior", index, SHAPE)),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(options.rounds + 1):
        order = np.random.default_rng(number).permutation(options.samples)
        for name, read in kinds.items():
            begun = time.perf_counter()
            for start in range(0, options.samples - options.batch + 1, options.batch):
                read(order[start : start + options.batch])
            # The first round fills the page cache.
            if number:
                found[name].append(options.samples / (time.perf_counter() - begun))
    rates = {name: statistics.median(rates) for name, rates in found.items()}
    return {
        name: {"samples_per_second": rate, "bytes_per_second": rate * size} for name, rate in rates.items()
    }


def _write(folder: Path, samples: int, dtype: str) -> None:
    """Write a folder like that of `flowrace data encode`, with noise as moments."""
    rng, files = np.random.default_rng(0), {}
    for number, start in enumerate(range(0, samples, ROWS)):
        rows = min(ROWS, samples - start)
        np.save(folder / shard_name(number), rng.random((rows, 1, 2, *SHAPE), dtype=np.float32).astype(dtype))
        files[shard_name(number)] = sha256_of(folder / shard_name(number))
    keys = np.arange(samples, dtype="<i8").tobytes()
    about = {"labels": np.zeros(samples, dtype=np.int64), "keys": np.frombuffer(keys, dtype=np.uint8)}
    np.savez(folder / INDEX, **about, ends=np.arange(8, 8 * samples + 1, 8))
    files[INDEX] = sha256_of(folder / INDEX)
    manifest = {"format": FORMAT, "samples": samples, "classes": 1, "shape": SHAPE, "pixels": (3, 256, 256)}
    codec = {"name": "sd-vae", "sha256": "", "scale": 0.18215, "weights": ""}
    rest = {"codec": codec, "copies": 1, "dtype": dtype, "rows": ROWS, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest | rest))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "latents.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
