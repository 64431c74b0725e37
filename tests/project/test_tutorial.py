"""The tutorial: its files and commands run in the order of the page, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks() -> Iterator[tuple[str, str, str]]:
    """Yield language, file name and text of each fenced block."""
    for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        yield match[1], match[2] or "", match[3]


def shell(folder: Path) -> dict[str, str]:
    """Return the environment of a reader: this checkout and Python, with cache and plug-ins in the folder."""
    commands, site = folder / "bin", folder / "site"
    commands.mkdir()
    for name, module in (("flowrace", "-m harness.cli.main"), ("pip", "-m pip"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (commands / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{site}",
        "FLOWRACE_CACHE": str(folder / "cache"),
        # The plug-in is installed next to the files of the page, not into this environment, and without a
        # package index.
        "PIP_TARGET": str(site),
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_DEPS": "1",
    }


@pytest.mark.slow
def test_tutorial_runs_from_its_images_to_its_audit(tmp_path: Path) -> None:
    environment, said = shell(tmp_path), {}
    page = tmp_path / "page"
    page.mkdir()
    for language, name, text in blocks():
        if name:
            (page / name).parent.mkdir(parents=True, exist_ok=True)
            (page / name).write_text(text)
            continue
        assert language == "sh", f"a block that is neither a file nor a command: {text}"
        for line in text.splitlines():
            done = subprocess.run(
                line, shell=True, cwd=page, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            said[line] = done.stdout
    assert "Quiet: the activations" in said["flowrace explain quiet"]
    assert (page / "samples.png").stat().st_size > 0
    assert (page / "report.html").read_text().startswith("<!doctype html>")
    verdict = said["flowrace audit claim.toml runs/race"]
    assert re.search("^(SUPPORTED|REFUTED|INCONCLUSIVE)", verdict, re.MULTILINE), verdict
    assert "registered before" in verdict and "censored: flow 0, quiet 0" in verdict, verdict
