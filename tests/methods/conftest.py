"""Fixtures: every registered method, and a plug-in that pip installs into a separate folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import registry
from methods.common.method import Method
from tests.support.conformance_runs import SLOW

PLUGIN, GUIDED_PLUGIN = "echo", "inner"
PLUGINS = (PLUGIN, GUIDED_PLUGIN)


def declared_stacks() -> list[str]:
    """Return every pair of methods that declares itself compatible."""
    classes = {name: registry.load("method", name) for name in registry.METHODS}
    pairs = {(name, other) for name, cls in classes.items() for other in cls.stacks_with}
    return sorted({registry.stack_name(pair) for pair in pairs})


STACKS = declared_stacks()
FAST_STACKS = ("repa+tread", "repa+internal_guidance")


@pytest.fixture(scope="session")
def plugin_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the plug-ins with pip, and return their folder; on the import path they register `echo` and
    `inner`."""
    work = tmp_path_factory.mktemp("plugin")
    source, site = work / "source", work / "site"
    # A build writes into the folder of its source.
    for folder in ("plugin", "inner_plugin"):
        shutil.copytree(Path(__file__).parent / folder, source / folder)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        *offline,
        "--target",
        str(site),
        *map(str, source.iterdir()),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return site


few_methods_fast = pytest.mark.parametrize(
    "method",
    [
        name if name in ("flow", "repa", "self_flow", PLUGIN) else pytest.param(name, marks=pytest.mark.slow)
        for name in (*registry.METHODS, *STACKS, *PLUGINS)
    ],
    indirect=True,
)
"""Runs a test with three methods and the plug-in in the fast suite, and with all others in the slow one."""


@pytest.fixture(
    params=[
        *(
            pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
            for name in registry.names("method")
        ),
        *(name if name in FAST_STACKS else pytest.param(name, marks=pytest.mark.slow) for name in STACKS),
        *PLUGINS,
    ]
)
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    """Return the class of a registered name; the plug-in is on the import path only for its own cases."""
    if request.param in PLUGINS:
        monkeypatch.syspath_prepend(str(request.getfixturevalue("plugin_site")))
    return registry.load("method", request.param)
