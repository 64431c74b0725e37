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
from tests.support.runs import TINY


def flowrace(*words: str, site: Path) -> subprocess.CompletedProcess:
    """Run a command in a separate process, with the plug-in's folder on its import path."""
    command = [sys.executable, "-m", "harness.cli.main", *words]
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


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


def test_plugin_is_listed_and_explained(plugin_site: Path) -> None:
    result = flowrace("list", "methods", "--json", site=plugin_site)
    assert result.returncode == 0, result.stderr
    entry = json.loads(result.stdout)["methods"]["echo"]
    assert entry["needs"] == ["EMA teacher"] and entry["source"] == "an example, not published"
    # Half of a forward pass, which is a third of a step.
    assert 1 / 8 < entry["extra_flops"] < 1 / 6
    page = flowrace("explain", "echo", site=plugin_site).stdout
    assert "L = L_gen + coefficient * mean_{samples, tokens, channels}" in page and "EMA teacher" in page


def test_plugin_trains(plugin_site: Path, tmp_path: Path) -> None:
    settings = [
        word for setting in (*TINY, "method.name=echo", "train.steps=3") for word in ("--set", setting)
    ]
    result = flowrace(
        "run", "digits", *settings, "--out", str(tmp_path), "--no-track", "--quiet", site=plugin_site
    )
    assert result.returncode == 0, result.stderr
    record = Record(Path(result.stdout.split()[-1]))
    assert record.status == "done"
    assert [sorted(event["losses"]) for event in record.of("train")] == [["align", "flow"]] * 3


def test_plugin_settings_are_checked_like_built_in_ones(plugin_site: Path) -> None:
    for words, message in (
        (["--set", "method.name=ecko"], "Did you mean 'echo'?"),
        (["--set", "method.name=echo", "--set", "method.layr=1"], "Did you mean 'method.layer'?"),
        (["--set", "method.name=echo", "--set", "method.layer=99"], "has layers 1 to 6"),
    ):
        result = flowrace("run", "digits", *words, site=plugin_site)
        assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


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


def test_broken_plugin_does_not_hide_other_methods(tmp_path: Path) -> None:
    register_broken(tmp_path, "nowhere:Method")
    listed = json.loads(flowrace("list", "methods", "--json", site=tmp_path).stdout)["methods"]
    assert listed["broken"]["summary"].startswith("not available: method 'broken' is registered by")
    assert listed["broken"]["extra_flops"] is None and listed["flow"]["extra_flops"] == 0
