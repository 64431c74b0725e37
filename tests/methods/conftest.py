"""Every registered method, and one of a package from outside that is installed as a user would, but into its
own folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import registry
from methods.common.method import Method

OUTSIDE = "echo"


@pytest.fixture(scope="session")
def plugin_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `pip install` put the plug-in into; on the import path it registers the method
    `echo`."""
    work = tmp_path_factory.mktemp("plugin")
    source, site = work / "source", work / "site"
    shutil.copytree(Path(__file__).parent / "plugin", source)  # a build writes beside its source
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
        str(source),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return site


@pytest.fixture(params=[*registry.names("method"), OUTSIDE])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Method]:
    """The class of a registered name; the plug-in is on the import path only for its own cases."""
    if request.param == OUTSIDE:
        monkeypatch.syspath_prepend(str(request.getfixturevalue("plugin_site")))
    return registry.load("method", request.param)
