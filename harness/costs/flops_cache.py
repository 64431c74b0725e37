"""FLOPs of a training step, counted once: counts are kept until a source file or a library that they depend on changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib import resources
from pathlib import Path

from harness.config import registry
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked, write_atomic
from harness.files.terminal import tracked
from harness.runtime.environment import package_version

PACKAGES = ("harness", "methods")
LIBRARIES = ("torch", "timm", "open_clip_torch")


def step_counts(names: Iterable[str], count: Callable[[str], int]) -> dict[str, int]:
    """`count` of each method, in the order of the names.

    Those of methods that come with flowrace are read from the cache; a plug-in's are counted anew, as nothing tells when its
    source changes.
    """
    file = _file()
    kept = _read(file)
    missing = [name for name in names if name not in kept]
    for name in tracked(missing, "counting FLOPs"):
        kept[name] = count(name)
    if file is not None and any(name in registry.METHODS for name in missing):
        _write(file, {name: kept[name] for name in sorted(kept) if name in registry.METHODS})
    return {name: kept[name] for name in names}


@cache
def identity() -> str:
    """A hash of what counts depend on: our source, and the versions of the libraries whose networks are counted."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        root = Path(str(resources.files(package)))
        for file in sorted(root.rglob("*.py")):
            digest.update(
                file.relative_to(root.parent).as_posix().encode() + b"\0" + file.read_bytes() + b"\0"
            )
    digest.update(" ".join(f"{name} {package_version(name)}" for name in LIBRARIES).encode())
    return digest.hexdigest()


def _file() -> Path | None:
    """None where the cache cannot be written: then everything is counted each time."""
    try:
        return cache_dir("tally") / "flops.json"
    except UserError:
        return None


def _read(file: Path | None) -> dict[str, int]:
    """What is kept and still holds; nothing where the file is absent, damaged or of another source."""
    try:
        found = json.loads(file.read_bytes()) if file else {}
        return dict(found["flops"]) if found.get("of") == identity() else {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return {}


def _write(file: Path, flops: dict[str, int]) -> None:
    with contextlib.suppress(OSError), locked(file):  # a full disk: what is not kept is counted again
        write_atomic(file, json.dumps({"of": identity(), "flops": flops}).encode())
