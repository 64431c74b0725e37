"""The import order: imports point one way, down to sub-folders, without circles."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Rooms of each package, the lowest first. A room may import rooms of the lines above it, but not those of its
# line or of lines below. A room is a folder, or a file directly in its package.
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
        {"harness.flow", "harness.records", "harness.environments"},
        {"harness.data"},
        {"harness.data.generated", "harness.encoders"},
        {"harness.data.disk"},
        {"harness.latents.layouts"},
        {"harness.latents", "harness.text", "harness.acting"},
        {"harness.evaluation"},
        {"harness.evaluation.samples", "harness.assembly"},
        {"harness.costs"},
        {"harness.train"},
        {"harness.exchange", "harness.policy"},
        {"harness.probing", "harness.rollouts"},
        {"harness.cli"},
    ],
    "methods": [{"methods.common"}, {"methods"}],
    "reports": [
        {"reports.stats", "reports.literature", "reports.logs"},
        {"reports.race"},
        {"reports.audit.inputs", "reports.figures"},
        {"reports.audit"},
        {"reports.analysis"},
        {"reports.pages"},
        {"reports.gallery"},
        {"reports.cli"},
    ],
    "sweeps": [{"sweeps.plan"}, {"sweeps.launch", "sweeps.tune", "sweeps.race"}, {"sweeps.cli"}],
    "flowrace": [{"flowrace"}],
}

# What a package may import of the others.
BORDERS = {
    "metrics": set(),
    "methods": {"harness.errors", "harness.runtime", "harness.backbone", "harness.config", "harness.flow"},
    "harness": {"metrics"},
    "reports": {"harness.errors", "harness.files", "harness.config", "harness.records", "metrics.intervals"},
    "sweeps": {"harness", "metrics"},
    "flowrace": {"harness", "methods", "metrics", "reports", "sweeps"},
}

# A sweep ends with its report, and a race is judged while it runs.
EXCEPTIONS = {("sweeps.cli.study_run", "reports.pages"), ("sweeps.race", "reports.audit")}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the packages by its dotted name."""
    found = {}
    for package in ORDER:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


@cache
def imports(file: Path) -> set[str]:
    """Return the modules of the packages that a file imports, imports inside functions included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: imports are absolute"
            for alias in node.names:
                member = f"{node.module}.{alias.name}"
                found.add(member if member in modules() else node.module)
    return {name for name in found if name.split(".")[0] in ORDER}


def room(module: str) -> str:
    """Return the room of a module: its folder, or the module itself if directly in harness or metrics."""
    parent = module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]
    if parent in ("harness", "metrics") and module != parent:
        return module
    return parent


def place(module: str) -> int | None:
    """Return the number of the line of a module's room; None for the `__init__` of a package."""
    lines = ORDER[module.split(".")[0]]
    found = [number for number, line in enumerate(lines) if room(module) in line]
    if not found and modules()[module].name == "__init__.py" and "." not in module:
        return None
    assert found, f"{module}: add its room {room(module)} to ORDER"
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
        if not inside(name, BORDERS[package] | {package})
        and not any(inside(module, {own}) and inside(name, {other}) for own, other in EXCEPTIONS)
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


def test_rooms_of_the_order_exist() -> None:
    rooms = {room(module) for module in modules()}
    assert [name for lines in ORDER.values() for line in lines for name in line if name not in rooms] == []


def test_folders_have_a_docstring() -> None:
    silent = [
        name
        for name, file in modules().items()
        if file.name == "__init__.py" and not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_imports_of_modules_have_no_circle() -> None:
    """Imports inside functions are included."""
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


# Test files whose helpers others use: the kills of the promises are also those of the matrix.
SHARED_TESTS = {"tests.promises.test_kill"}


def test_helpers_of_tests_are_in_files_without_tests() -> None:
    wrong = set()
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tests."):
                members = [f"{node.module}.{alias.name}" for alias in node.names]
                files = [one for one in (node.module, *members) if one.rpartition(".")[2].startswith("test_")]
                wrong |= {f"{name} imports {one}" for one in files if one not in SHARED_TESTS}
    assert wrong == set()
