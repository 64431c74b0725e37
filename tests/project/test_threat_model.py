"""The page about threats: its limits are those of the code, and its figures those recorded."""

from __future__ import annotations

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "guides" / "threat-model.md").read_text()
READERS = (
    *("harness/data/disk", "harness/files", "harness/latents", "harness/records", "metrics/files"),
    *("metrics/extractors/torchscript.py", "reports/audit/inputs"),
)
"""Folders and files with the code that reads files of strangers."""
BOUND = re.compile(r"(MOST|LARGEST|LONGEST|DEEPEST|FASTEST)(_[A-Z]+)?|[A-Z]+_BYTES")
NO_BOUNDS = {
    # Parts of a log that are looked at.
    "harness.files.files.TAIL_BYTES",
    "harness.files.files.PROBED_BYTES",
    # Longer lines are read one by one.
    "harness.records.event_log.LONGEST",
    # What MLflow writes for infinity.
    "reports.audit.inputs.mlflow_runs.LARGEST",
}
ROW = re.compile(r"^\| [^|]+ \| ([^|]+) \| `([\w.]+)(?:\[(\w+)\])?` \|$", re.MULTILINE)


def limits() -> list[tuple[str, str, str]]:
    """Return the limits of the page: number, constant and key."""
    return ROW.findall(PAGE)


# Any: a constant.
def value_of(constant: str, key: str) -> Any:
    module, _, name = constant.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    return value[key] if key else value


def constants() -> Iterator[str]:
    """Yield the constants of the readers that are named as bounds."""
    for place in READERS:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Assign):
                    names = [one.id for one in ast.walk(node.targets[0]) if isinstance(one, ast.Name)]
                    yield from (f"{module}.{name}" for name in names if BOUND.fullmatch(name))


@pytest.mark.parametrize(("number", "constant", "key"), limits(), ids=lambda value: value)
def test_limit_on_the_page_is_that_of_the_code(number: str, constant: str, key: str) -> None:
    value = value_of(constant, key)
    assert number == (f"{value:,}" if isinstance(value, int) else f"{value}")


def test_every_bound_of_a_reader_is_on_the_page() -> None:
    found = set(constants()) - NO_BOUNDS
    assert len(found) > 20
    assert found - {constant for _, constant, _ in limits()} == set()


def test_tests_on_the_page_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", PAGE)
    assert len(named) > 10
    for file, test in named:
        path = ROOT / file
        assert path.exists(), file
        if test:
            functions = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
            assert test in functions, f"{file}::{test}"


def test_kills_on_the_page_are_those_recorded() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "kills.json").read_text())
    assert found["kills"] >= 200 and found["differences"] == 0
    assert len(found["by method"].keys() - {"all five"}) >= 5
    assert sum(found["by layout"].values()) == found["by command"]["import"]
    assert set(found["by modality"]) == {"image", "video", "audio", "robot"}
    rows = dict(re.findall(r"^\| `([^`]+)` \| (\d+) \| 0 \|$", PAGE, re.MULTILINE))
    assert {name: int(count) for name, count in rows.items()} == found["by command"]


def test_quick_kills_do_not_replace_the_recorded_ones() -> None:
    from benchmarks.kills import read_arguments

    with pytest.raises(SystemExit) as ended:
        read_arguments(["--quick"])
    assert ended.value.code == 2
    assert read_arguments(["--quick", "--out", "found.json"]).out == Path("found.json")
    assert read_arguments([]).out is None


def test_number_of_doors_on_the_page_is_that_of_the_fuzzer() -> None:
    from tests.fuzz.container_doors import CAPTIONS, CONTAINERS, LATENTS
    from tests.fuzz.data_doors import DATA
    from tests.fuzz.file_doors import FILES, LOGS
    from tests.fuzz.race_doors import RACES

    names = [door.name for door in (*DATA, *FILES, *LOGS, *RACES, *CONTAINERS, *CAPTIONS, *LATENTS)]
    assert len(set(names)) == len(names) and f"There are {len(names)} doors." in PAGE
