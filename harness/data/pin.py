"""Pinning a spec to the content of its data, so that the run id tells different data apart wherever they
lie."""

from __future__ import annotations

from pathlib import Path

from harness.config.spec import RunSpec
from harness.data.open import open_dataset


def pinned(spec: RunSpec) -> RunSpec:
    """The spec with `data.fingerprint` filled in from its root, when data from disk are there to be read."""
    if not spec.data.root or spec.data.fingerprint or not Path(spec.data.root).exists():
        return spec
    fingerprint = open_dataset(spec.data).fingerprint
    return spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": fingerprint})})
