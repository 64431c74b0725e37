"""Small latents in the layouts of other code, written with numpy, zipfile and safetensors alone."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from harness.cli.main import cli

LABELS = (0, 1, 2, 0, 1, 2, 2, 2, 0, 1, 1, 0) * 4
SPREAD = 5.0
"""Standard deviation of raw latents of SD-VAE."""


def import_data(source: object, out: Path, *options: str) -> dict:
    """Run `flowrace data import --json` and return what it prints."""
    result = CliRunner().invoke(cli, words(source, out, *options, "--json"), catch_exceptions=False)
    return json.loads(result.stdout)


def attempt(source: object, out: Path, *options: str) -> Result:
    """Run `flowrace data import` and return its result, in which a mistake is an exception."""
    return CliRunner().invoke(cli, words(source, out, *options))


def words(source: object, out: Path, *options: str) -> list[str]:
    return ["data", "import", str(source), "--out", str(out), *options]


def moments(
    n: int = len(LABELS), channels: int = 4, side: int = 4, *, logvar: bool = False, copies: int = 1
) -> np.ndarray:
    """Return records (n, copies, 2 * channels, side, side), float32, of raw latents."""
    draws = np.random.default_rng(1)
    mean = draws.normal(0, SPREAD, (n, copies, channels, side, side))
    std = draws.uniform(0.01, 0.1, mean.shape)
    return np.concatenate([mean, 2 * np.log(std) if logvar else std], axis=2).astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def repa_files(records: np.ndarray, labels: tuple[int, ...] | None = LABELS) -> dict[str, bytes]:
    """Return the files of `vae-sd` as REPA's preprocessing names them."""
    names = [f"{n // 5:05d}/img-mean-std-{n:08d}.npy" for n in range(len(records))]
    files = {name: npy(record) for name, record in zip(names, records, strict=True)}
    rows = None if labels is None else [[name, label] for name, label in zip(names, labels, strict=True)]
    return files | {"dataset.json": json.dumps({"labels": rows}).encode()}


def image_files(
    pixels: np.ndarray, labels: tuple[int, ...] | None = LABELS, ends: str = "png"
) -> dict[str, bytes]:
    """Return the files of `images`: PNGs without compression, and their labels."""
    files = {}
    for number, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=0)
        files[f"{number // 5:05d}/img{number:08d}.{ends}"] = buffer.getvalue()
    rows = None if labels is None else [[name, label] for name, label in zip(files, labels, strict=True)]
    return files | {"dataset.json": json.dumps({"labels": rows}).encode()}


def write(target: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder, or into a zip file without compression, as EDM2 does."""
    if target.suffix == ".zip":
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return target
    for name, content in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)
    return target


def safetensors_files(
    root: Path,
    latents: np.ndarray,
    labels: tuple[int, ...] = LABELS,
    rows: int = 5,
    kind: torch.dtype = torch.float32,
) -> Path:
    """Write draws (n, 2, c, h, w) of images and mirrored images as LightningDiT does."""
    root.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(latents), rows)):
        part = torch.from_numpy(latents[start : start + rows]).to(kind)
        tensors = {
            "latents": part[:, 0].contiguous(),
            "latents_flip": part[:, 1].contiguous(),
            "labels": torch.tensor(labels[start : start + rows]),
        }
        save_file(tensors, root / f"latents_rank00_shard{number:03d}.safetensors")
    return root


def stored(out: Path) -> np.ndarray:
    """Return all records of a folder of imported latents, read with numpy alone."""
    return np.concatenate([np.load(file) for file in sorted(out.glob("shard-*.npy"))])


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def uvit_files(records: np.ndarray, captions: int = 2) -> dict[str, bytes]:
    """Return the files of U-ViT's scripts/extract_mscoco_feature.py."""
    files = {f"{number}.npy": npy(record) for number, record in enumerate(records)}
    for number in range(len(records)):
        for caption in range(captions):
            files[f"{number}_{caption}.npy"] = npy(states(number, caption))
    return files | {"empty_context.npy": npy(states(0, 9))}


def states(number: int, caption: int) -> np.ndarray:
    return np.random.default_rng((number, caption)).normal(size=(7, 6)).astype(np.float32)
