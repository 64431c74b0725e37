"""Fixtures of all tests: an offline hub, a temporary cache, and data and weights next to the checkout."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parent.parent
# A shell that starts the tests in the background ignores these signals, and every child would inherit that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoders and extractors trained by the tests are cached for the session only."""
    os.environ["FLOWRACE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def beside(variable: str, folder: str) -> Path:
    """Return a folder of real data or weights, from its variable or `../shared`; skip the test if missing."""
    path = Path(os.environ.get(variable, ROOT.parent / "shared" / folder))
    if not path.is_dir():
        pytest.skip(f"{path} does not exist; set {variable} to a folder")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return beside("FLOWRACE_DATA", "data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    return beside("FLOWRACE_WEIGHTS", "weights")


@pytest.fixture(scope="session")
def golden() -> Path:
    return beside("FLOWRACE_GOLDEN", "golden")
