"""Damaged copies of small sources: a seed draws the bytes that change."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from harness.errors import UserError
from tests.support.latent_layouts import attempt, files_below

HEAD = 600
"""Bytes at the beginning of a file, where most formats describe themselves."""


def mutated(files: list[Path], count: int) -> Iterator[Path]:
    """Damage one of the files at a time, yield it, and restore it; its length changes at times."""
    draws = np.random.default_rng(0)
    for _ in range(count):
        file = files[draws.integers(len(files))]
        content = file.read_bytes()
        changed = bytearray(content)
        for place in draws.integers(0, len(content), 4) * draws.integers(0, 2, 4):
            changed[place] = draws.integers(256)
        for end in (min(HEAD, len(content)), len(content)):
            changed[end - 1 - draws.integers(min(HEAD, end))] = draws.integers(256)
        if draws.random() < 0.1:
            del changed[draws.integers(len(changed)) :]
        file.write_bytes(changed)
        yield file
        file.write_bytes(content)


def check_mutated_imports(source: Path, out: Path, count: int, *options: str) -> None:
    """Import damaged copies; any other exception than `UserError`, or a half-written file, is a failure."""
    files = files_below(source) if source.is_dir() else [source]
    refused = 0
    for file in mutated(files, count):
        before = file.read_bytes()
        result = attempt(source, out, *options)
        assert file.read_bytes() == before
        if result.exit_code == 0:
            assert (out / "latents.json").exists()
            shutil.rmtree(out)
            continue
        if not isinstance(result.exception, UserError):
            # The click runner keeps the exception.
            raise AssertionError(f"{file}: {result.output}") from result.exception
        assert "\n" not in str(result.exception)
        assert not out.exists()
        refused += 1
    assert refused > count // 10


def check_mutated_reads(files: list[Path], count: int, read: Callable[[], object]) -> None:
    """Read damaged copies; any other exception than `UserError` is a failure."""
    refused = 0
    for _ in mutated(files, count):
        try:
            read()
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > count // 10
