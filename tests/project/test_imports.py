"""The house: imports point one way (DESIGN, section 2)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("harness", "methods", "metrics", "sweeps", "reports")
MAY_IMPORT = {
    "metrics": set(),
    "methods": {
        "methods",
        "harness.backbone",
        "harness.flow.batch",
        "harness.runtime.random_streams",
        "harness.flow.path",
        "harness.config.spec",
    },
    "harness": {"harness", "metrics"},
    "reports": {"reports", "harness.records.record", "harness.config.spec", "harness.errors"},
    "sweeps": {"sweeps", "harness"},
}
BY_NAME = {("sweeps/cli/sweep.py", "reports.pages.page")}
"""A sweep ends with its report."""


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found |= (
                {node.module}
                if node.module not in PACKAGES
                else {f"{node.module}.{a.name}" for a in node.names}
            )
    return {name for name in found if name.split(".")[0] in PACKAGES}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = []
    for file in sorted((ROOT / package).rglob("*.py")):
        where = file.relative_to(ROOT).as_posix()
        for name in imports(file):
            allowed = any(
                name == room or name.startswith(f"{room}.") for room in MAY_IMPORT[package] | {package}
            )
            if not allowed and (where, name) not in BY_NAME:
                wrong.append(f"{where} imports {name}")
    assert wrong == []


def test_no_circles_between_modules() -> None:
    """Following imports at module level never leads back."""
    graph = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            top = ast.parse(file.read_text()).body
            graph[name] = {
                n for node in top if isinstance(node, ast.Import | ast.ImportFrom) for n in _targets(node)
            }
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"circle: {' -> '.join((*trail, name))}"
        if name in graph and name not in state:
            state[name] = 1
            for target in graph[name]:
                visit(target, (*trail, name))
            state[name] = 2

    for name in graph:
        visit(name, ())


def _targets(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
