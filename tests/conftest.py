"""Fixtures of all tests: an offline hub, a temporary cache, and data and weights next to the checkout."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
# Threads of a child that wait sleep, instead of spinning on a core that another test needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
ROOT = Path(__file__).parent.parent
FAILURE_LINES = 30
# A shell that starts the tests in the background ignores these signals, and every child would inherit that.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Exempt the objects of imported modules from garbage collection.

    Every full collection would traverse millions of objects of torch, MLflow and the other packages.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(20_000, 20, 20)


class Failures:
    """Prints a failure at once: a suite that is stopped at a time limit never reaches its summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the name of a failed test and the end of its report."""
        if report.failed:
            end = report.longreprtext.splitlines()[-FAILURE_LINES:]
            self.terminal.ensure_newline()
            self.terminal.write_line("\n".join((f"FAILED {report.nodeid} ({report.when})", *end)))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Print failures at once where the results arrive."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(Failures(terminal))


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache the encoders and extractors that tests train for the session, once for all its processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["FLOWRACE_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="module")
def quick_networks(session_cache: Path) -> Iterator[None]:
    """Train networks of metrics and encoders for a few steps, in a cache that these modules share."""
    from tests.support.quick import quickly_trained

    with quickly_trained(session_cache / "quick"):
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write pages of reports without figures."""
    from tests.support.pages import leave_out_figures

    leave_out_figures(monkeypatch)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Restore torch's number of threads, which a run sets to that of its spec or to all cores.

    Two threads in each of two test processes would wait for each other's core. The number is that of the test
    process, not that before this test: the fixture of a module may have trained a run by then, and a test may
    be the first to import torch.
    """
    yield
    if torch := sys.modules.get("torch"):
        from harness.runtime.environment import cores

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 0)) or cores())


@pytest.fixture(scope="session")
def new_store(session_cache: Path) -> Callable[[Path], str]:
    """Return a function that makes an empty MLflow store of a path, and returns its URI."""
    from tests.support.tracked import copy_empty_store

    return partial(copy_empty_store, session_cache)


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
