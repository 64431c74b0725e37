"""Pinning a spec to the content of its data, so that the run id tells different data apart wherever they lie."""

from __future__ import annotations

from pathlib import Path

from harness.data.base import open_dataset
from harness.spec import RunSpec


def pinned(spec: RunSpec) -> RunSpec:
    """The spec with `data.fingerprint` filled in from its root, when data from disk are there to be read."""
    if not spec.data.root or spec.data.fingerprint or not Path(spec.data.root).exists():
        return spec
    fingerprint = open_dataset(spec.data).fingerprint
    return spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": fingerprint})})
