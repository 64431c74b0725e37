"""`flowrace doctor`: the comparison with constraints.txt, and the file itself."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.cli.doctor import CONSTRAINTS, _constraints
from tests.conftest import ROOT


def test_doctor_reads_the_constraints_of_the_checkout() -> None:
    assert ROOT / "constraints.txt" == CONSTRAINTS and CONSTRAINTS.exists()


def test_doctor_accepts_pinned_versions_whatever_their_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cli.doctor.package_version", lambda name: "2.11.0+cpu")
    (tmp_path / "pins.txt").write_text("# a comment\ntorch==2.11.0\n")
    assert _constraints(tmp_path / "pins.txt").state == "ok"


def test_doctor_names_packages_that_differ_and_counts_those_not_installed(tmp_path: Path) -> None:
    pins = f"numpy==0.1\nno-such-package==1.0\nclick=={version('click')}\n"
    (tmp_path / "pins.txt").write_text(pins)
    found = _constraints(tmp_path / "pins.txt")
    assert found.state == "note"
    assert found.text == (
        "of 3 packages in constraints.txt, 1 differ, 1 are not installed. "
        f"numpy==0.1 (here {version('numpy')})"
    )


def test_doctor_adds_a_note_when_constraints_are_missing(tmp_path: Path) -> None:
    found = _constraints(tmp_path / "pins.txt")
    assert found.state == "note" and found.text.startswith("no constraints.txt")


def test_constraints_pin_exact_public_versions() -> None:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    assert {"torch", "numpy", "pytest"} <= {line.partition("==")[0] for line in lines}
    assert all("==" in line and not set(line) & set("+@/") for line in lines)


def test_constraints_satisfy_every_requirement_of_pyproject() -> None:
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    for requirement in map(Requirement, texts):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
