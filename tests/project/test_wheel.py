"""A wheel works without the checkout: it contains presets, studies and templates."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the files that git tracks, without others of the working tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    words = ["wheel", source, "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    return next(out.glob("flowrace-*.whl"))


@pytest.mark.slow
def test_wheel_contains_the_packages_and_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "harness/presets/digits.toml",
        "harness/cli/method_facts.json",
        "sweeps/studies/digits.toml",
        "reports/templates/report.html.j2",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    sources = {
        p.relative_to(ROOT).as_posix()
        for d in ("flowrace", "harness", "methods", "metrics", "sweeps", "reports")
        for p in (ROOT / d).rglob("*.py")
    }
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert sources & set(tracked) <= names


@pytest.mark.slow
def test_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """An extracted copy in another folder lists, trains a few steps and writes a report."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def flowrace(*words: str) -> str:
        command = [sys.executable, "-m", "harness.cli.main", *words]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "digits" in flowrace("list", "presets") and "digits" in flowrace("list", "studies")
    small = ["backbone.size=pico", "train.steps=4", "eval.every=2", "eval.samples=20", "data.held_out=0.5"]
    words = [word for setting in small for word in ("--set", setting)]
    run = Path(flowrace("run", "digits", *words, "--out", "runs", "--no-track").splitlines()[-1])
    assert (tmp_path / run / "done").exists()
    page = flowrace("report", "runs", "-o", "report.html").splitlines()[-1]
    assert (tmp_path / page).read_text().startswith("<!doctype html>")
    where = subprocess.run(
        [sys.executable, "-c", "import harness; print(harness.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    ).stdout
    assert where.startswith(str(site))
