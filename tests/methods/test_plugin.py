"""A plug-in: a package that registers the method `echo` in the entry-point group `flowrace.methods`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.config import registry
from harness.errors import UserError
from harness.records.record import Record
from tests.support.commands import flowrace
from tests.support.quick import keep_local_network
from tests.support.runs import TINY, tiny


@pytest.fixture
def plugin(plugin_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the plug-in's folder on the import path of this process."""
    monkeypatch.syspath_prepend(str(plugin_site))


def register_broken(site: Path, module: str) -> None:
    """Write the metadata of an installed package with a method `broken`."""
    about = site / "flowrace_broken-0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flowrace-broken\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(f"[flowrace.methods]\nbroken = {module}\n")


def test_plugin_is_registered_only_when_installed(plugin_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "echo" not in registry.names("method")
    monkeypatch.syspath_prepend(str(plugin_site))
    assert "echo" in registry.names("method")
    assert registry.load("method", "echo").Config().name == "echo"


@pytest.mark.usefixtures("plugin")
def test_plugin_is_listed_and_explained() -> None:
    entry = json.loads(flowrace("list", "methods", "--json").stdout)["methods"]["echo"]
    assert entry["needs"] == ["EMA teacher"] and entry["source"] == "an example, not published"
    # Half of a forward pass, which is a third of a step.
    assert 1 / 8 < entry["extra_flops"] < 1 / 6
    page = flowrace("explain", "echo").stdout
    assert "L = L_gen + coefficient * mean_{samples, tokens, channels}" in page and "EMA teacher" in page


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_plugin_trains(plugin_site: Path, tmp_path: Path) -> None:
    """By the command in a process of its own."""
    keep_local_network(tiny())
    settings = [
        word for setting in (*TINY, "method.name=echo", "train.steps=3") for word in ("--set", setting)
    ]
    run = ["run", "digits", *settings, "--out", str(tmp_path), "--no-track", "--quiet"]
    command = [sys.executable, "-m", "harness.cli.main", *run]
    environment = os.environ | {"PYTHONPATH": str(plugin_site)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    record = Record(Path(result.stdout.split()[-1]))
    assert record.status == "done"
    assert [sorted(event["losses"]) for event in record.of("train")] == [["align", "flow"]] * 3


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.name=ecko"], "Did you mean 'echo'?"),
        (["method.name=echo", "method.layr=1"], "Did you mean 'method.layer'?"),
        (["method.name=echo", "method.layer=99"], "has layers 1 to 6"),
    ],
)
def test_plugin_settings_are_checked_like_built_in_ones(settings: list[str], message: str) -> None:
    result = flowrace("run", "digits", *(word for setting in settings for word in ("--set", setting)))
    assert isinstance(result.exception, UserError) and message in str(result.exception)


@pytest.mark.parametrize(
    ("module", "why"),
    [("nowhere:Method", "No module named 'nowhere'"), ("json:Method", "no attribute 'Method'")],
)
def test_broken_plugin_is_named_when_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, why: str
) -> None:
    register_broken(tmp_path, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        UserError, match=f"'broken' is registered by {module} but cannot be imported: .*{why}"
    ):
        registry.load("method", "broken")


def test_broken_plugin_does_not_hide_other_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_broken(tmp_path, "nowhere:Method")
    monkeypatch.syspath_prepend(str(tmp_path))
    listed = json.loads(flowrace("list", "methods", "--json").stdout)["methods"]
    assert listed["broken"]["summary"].startswith("not available: method 'broken' is registered by")
    assert listed["broken"]["extra_flops"] is None and listed["flow"]["extra_flops"] == 0
