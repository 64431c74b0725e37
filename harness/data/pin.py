"""The fingerprint of the data in a spec, which makes the run id depend on content and not on location."""

from __future__ import annotations

from pathlib import Path

from harness.config.spec import RunSpec
from harness.data.open import open_dataset


def pinned(spec: RunSpec) -> RunSpec:
    """Return the spec with `data.fingerprint` filled in, if it has a root that exists and no fingerprint
    yet."""
    if not spec.data.root or spec.data.fingerprint or not Path(spec.data.root).exists():
        return spec
    fingerprint = open_dataset(spec.data).fingerprint
    return spec.model_copy(update={"data": spec.data.model_copy(update={"fingerprint": fingerprint})})
