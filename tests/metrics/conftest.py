"""Reference features, and their metrics as computed by published tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def features(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "metrics" / "features.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def reference(golden: Path) -> dict[str, dict]:
    return json.loads((golden / "metrics" / "reference.json").read_text())
