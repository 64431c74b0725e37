"""The run directory of released weights that a command names in place of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from harness.assembly.resolve import is_run
from harness.backbone.sizes import name_of_size
from harness.exchange.import_run import Imported, convert, write_run
from harness.exchange.reading import read_source
from harness.files.cache import cache_dir
from harness.files.files import locked

SUFFIXES = (".pt", ".pth", ".safetensors")
OF_RUNS = ("eval.", "runtime.", "data.root", "data.codec")
"""Beginnings of the fields that can be set for an existing run."""


def is_weights(path: Path) -> bool:
    """Return whether a path is a file of weights."""
    return path.is_file() and path.suffix.lower() in SUFFIXES


def run_in_cache(path: Path, layout: str, overrides: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    """Return a run directory and the overrides that are left for it: of a run, both as given.

    Weights are imported into the cache, with the overrides that only an import takes.
    """
    if is_run(path) or not is_weights(path):
        return path, tuple(overrides)
    kept = tuple(override for override in overrides if override.startswith(OF_RUNS))
    cache, other = cache_dir("weights"), [override for override in overrides if override not in kept]
    # The ranks of a command import the same file.
    with locked(cache / "import"):
        return run_of_weights(path, layout, cache, other), kept


def run_of_weights(path: Path, layout: str, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Import a file of weights into a folder of runs, state what was found, and return the run directory."""
    imported = convert(read_source(path), layout)
    for line in found_lines(imported):
        click.echo(line, err=True)
    return write_run(imported, out, overrides=overrides)


def found_lines(imported: Imported, step: int | None = None) -> list[str]:
    """Return what was found in a file of weights, a line each; `step` replaces the one in the file."""
    source, found = imported.source, imported.found
    part = f"part {source.part}" if source.part else "the file"
    others = f" (not read: {', '.join(source.others)})" if source.others else ""
    sigma = "with sigma channels, which are not used" if found.learn_sigma else "no sigma channels"
    projector = f"{len(found.projectors)} weights of projectors" if found.projectors else "no projector"
    shape = "x".join(map(str, found.shape))
    condition = (
        f"text of {found.text_dim} features"
        if found.text_dim
        else f"{found.classes} classes and the null label"
    )
    where = (
        "given" if step is not None else "from the file" if source.step is not None else "none in the file"
    )
    return [
        f"read {source.path}: {part}{others}, {len(source.tensors)} tensors, {source.dtype}, "
        f"sha256 {source.sha256[:16]}",
        f"layout {found.layout}: size {name_of_size(found.size)}, patch {found.patch}, {shape}, "
        f"{condition}, {sigma}, {projector}",
        f"converted: differs from the released forward pass by {imported.difference:.1e} of the "
        "largest velocity",
        f"step {step if step is not None else source.step or 0} ({where})",
    ]
