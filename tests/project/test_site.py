"""The site builds without warnings and without the network, and its generated pages are complete."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import click
import pytest

import flowrace
from harness import __version__
from harness.cli.main import COMMANDS, cli
from harness.config import registry
from harness.config.fields import spec_fields
from tests.conftest import ROOT

pytest.importorskip("mkdocs", reason="pip install 'flowrace[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site without the network, warnings as errors."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    # No proxy listens on this port: a build that requests anything fails.
    environment = os.environ | {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """Load the hook that generates pages as MkDocs loads it."""
    folder = str(ROOT / "scripts")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("site_pages", ROOT / "scripts" / "site_pages.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)


@pytest.mark.slow
def test_site_loads_nothing_from_the_network(site: Path) -> None:
    outside = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//")
    assert [page.name for page in site.rglob("*.html") if outside.search(page.read_text())] == []


def test_site_has_every_command(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text()
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert f"flowrace {name}" in page
        assert all(option in page for param in command.params for option in param.opts if option[0] == "-")


def test_site_has_every_method(site: Path) -> None:
    page = (site / "reference" / "methods.html").read_text()
    assert all(f'id="{name}"' in page for name in registry.METHODS)


def test_site_has_every_public_name(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    assert [name for name in flowrace.__all__ if f'id="flowrace.{name}"' not in page] == []


def test_spec_page_explains_every_field(pages: ModuleType) -> None:
    rows = [line.split("|") for line in "".join(pages.spec_page()).splitlines() if line.startswith("| `")]
    meanings = {row[1].strip(" `"): row[-2].strip() for row in rows}
    assert {"seed", "data.parts.audio.weight", "train.betas", "runtime.shard"} <= meanings.keys()
    assert [name for name, meaning in meanings.items() if not meaning] == []


def test_spec_page_marks_what_the_run_id_hashes(pages: ModuleType) -> None:
    rows = [line.split("|") for line in "".join(pages.spec_page()).splitlines() if line.startswith("| `")]
    hashed = {row[1].strip(" `"): row[-3].strip() for row in rows}
    assert hashed["seed"] == "yes" and hashed["data.root"] == "no" and hashed["eval.replicates"] == "if set"
    assert len(hashed) == len(spec_fields())


def test_architecture_draws_every_room_with_its_label_inside_its_box(pages: ModuleType) -> None:
    picture = pages.architecture.svg()
    rooms = [room for rows in pages.architecture.table("ORDER").values() for row in rows for room in row]
    boxes = re.findall(
        r'class="room" x="(\d+)" y="\d+" width="(\d+)".*?\n<text x="(\d+)"[^>]*>([^<]+)', picture
    )
    assert len(boxes) == len(rooms)
    for left, width, start, label in boxes:
        # The mean width of a letter at 12 pixels is 6.2.
        assert int(start) + 6.3 * len(label) <= int(left) + int(width), label


def test_readme_is_at_most_130_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_from_the_root_lead_to_files(page: str) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text())
    assert targets and [target for target in targets if not (ROOT / target).exists()] == []


def test_readme_names_every_extra_and_every_method() -> None:
    text = (ROOT / "README.md").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name in (*extras, *registry.METHODS) if f"`{name}`" not in text] == []


def test_citation_and_changelog_have_this_version() -> None:
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
