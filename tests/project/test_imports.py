"""The house: imports point one way, down to sub-folders, and nothing leads back (DESIGN 2)."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Rooms of each package from the ground up: a room may import rooms on its own line or above, never below, and
# two rooms of one
# line do not import each other. A room is a folder, or a file that lies directly in its package.
ORDER = {
    "metrics": [
        {"metrics.value"},
        {"metrics.arrays", "metrics.intervals"},
        {"metrics.distances"},
        {"metrics.files", "metrics.suite"},
        {"metrics.extractors"},
        {"metrics.extractors.audio", "metrics.extractors.video", "metrics.domain"},
    ],
    "harness": [
        {"harness.errors"},
        {"harness.files", "harness.runtime"},
        {"harness.backbone"},
        {"harness.config"},
        {"harness.flow", "harness.records"},
        {"harness.data"},
        {"harness.data.generated", "harness.encoders"},
        {"harness.data.disk"},
        {"harness.latents"},
        {"harness.evaluation"},
        {"harness.evaluation.samples", "harness.assembly"},
        {"harness.costs"},
        {"harness.train"},
        {"harness.probing"},
        {"harness.cli"},
    ],
    "methods": [{"methods.common"}, {"methods"}],
    "reports": [
        {"reports.stats", "reports.literature"},
        {"reports.race"},
        {"reports.audit.inputs", "reports.figures"},
        {"reports.audit"},
        {"reports.analysis"},
        {"reports.pages"},
        {"reports.cli"},
    ],
    "sweeps": [{"sweeps.plan"}, {"sweeps.launch", "sweeps.tune"}, {"sweeps.cli"}],
    "flowrace": [{"flowrace"}],
}

# What a package may import of the others.
BORDERS = {
    "metrics": set(),
    "methods": {"harness.errors", "harness.runtime", "harness.backbone", "harness.config", "harness.flow"},
    "harness": {"metrics"},
    "reports": {"harness.errors", "harness.files", "harness.config", "harness.records"},
    "sweeps": {"harness", "metrics"},
    "flowrace": {"harness", "methods", "metrics", "reports", "sweeps"},
}

# A sweep ends with its report.
EXCEPTIONS = {("sweeps.cli.sweep", "reports.pages.page")}


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for package in ORDER:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


def imports(file: Path) -> set[str]:
    """The modules of ours that a file imports, inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules() else node.module)
    return {name for name in found if name.split(".")[0] in ORDER}


def room(module: str) -> str:
    """The folder that a module lies in; a file directly in a package is a room of its own, objectives
    excepted."""
    parent = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    if parent in ("harness", "metrics") and module != parent:
        return module
    return parent


def place(module: str) -> int | None:
    """The number of its room's line; None for the door of a package (its `__init__`)."""
    lines = ORDER[module.split(".")[0]]
    found = [number for number, line in enumerate(lines) if room(module) in line]
    if not found and modules()[module].name == "__init__.py" and "." not in module:
        return None
    assert found, f"{module}: the room {room(module)} is not in the order; say where it belongs"
    return found[0]


def inside(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("package", ORDER)
def test_imports_between_packages_point_one_way(package: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, file in modules().items()
        if inside(module, {package})
        for name in sorted(imports(file))
        if not inside(name, BORDERS[package] | {package}) and (module, name) not in EXCEPTIONS
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ORDER)
def test_imports_between_rooms_point_one_way(package: str) -> None:
    wrong = []
    for module, file in modules().items():
        for name in sorted(imports(file)):
            if not inside(module, {package}) or not inside(name, {package}) or place(module) is None:
                continue
            assert name in modules(), f"{module} imports {name}, which does not exist"
            if room(name) != room(module) and place(name) is not None and place(name) >= place(module):
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_every_room_of_the_order_exists() -> None:
    rooms = {room(module) for module in modules()}
    assert [name for lines in ORDER.values() for line in lines for name in line if name not in rooms] == []


def test_every_room_says_in_one_line_what_belongs_there() -> None:
    silent = [
        name
        for name, file in modules().items()
        if file.name == "__init__.py" and not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_no_circles_between_modules() -> None:
    """Following imports, those inside functions included, never leads back."""
    graph = {name: imports(file) & modules().keys() for name, file in modules().items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"circle: {' -> '.join((*trail, name))}"
        if name not in state:
            state[name] = 1
            for target in graph[name] - {name}:
                visit(target, (*trail, name))
            state[name] = 2

    for name in graph:
        visit(name, ())
