"""`flowrace claims`: its list, `show` and `check`, as text and JSON, and with the user's own claims."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness.errors import UserError
from reports.cli.claims import claims
from reports.literature.check import RULES
from reports.literature.database import load_literature
from tests.conftest import ROOT

OWN = """
paper = "mine"
title = "Mine"
[[table]]
source = "https://example.org Table 1"
status = "table"
model = "SiT-B/2"
dataset = "ImageNet-256"
metric = "FID"
steps = 400_000
numbers = [
    { id = "mine.a", method = "=cmd[bold]", value = 5.70 },
    { id = "mine.b", method = "Base", value = 6.0, steps = 800_000 },
]
[[ratio]]
id = "mine.ratio"
source = "abstract"
status = "abstract"
method = "=cmd"
baseline = "Base"
dataset = "ImageNet-256"
value = 3.0
of = ["mine.b", "mine.a"]
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(claims, list(words), catch_exceptions=False)


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "mine.toml").write_text(OWN)
    return str(tmp_path)


def test_list_has_one_line_per_number_in_a_pipe() -> None:
    lines = run("--method", "self_flow", "--metric", "FID", "--model", "SiT-XL/2", "--status", "table").output
    rows = [line for line in lines.splitlines() if "sf.Self-Flow.SiT-XL-2.4000000.FID" in line]
    assert len(rows) == 1 and "5.70" in rows[0] and "Self-Flow Table 1" in rows[0]
    assert lines.splitlines()[-1].startswith("3 published numbers")


def test_json_and_csv_have_every_field_of_the_same_numbers() -> None:
    found = json.loads(run("--paper", "sit", "--json").output)["numbers"]
    rows = list(csv.DictReader(io.StringIO(run("--paper", "sit", "--csv").output)))
    wanted = [number for number in load_literature().numbers if number.paper == "sit"]
    assert [n["id"] for n in found] == [row["id"] for row in rows] == [n.id for n in wanted]
    assert [float(row["value"]) for row in rows] == [n["value"] for n in found] == [n.value for n in wanted]
    assert found[0].keys() == rows[0].keys()


def test_show_prints_the_number_and_its_findings() -> None:
    text = run("show", "sf.claim.2.8x").output
    assert "text-to-image FID, not ImageNet" in text and "contradiction (across-benchmarks)" in text
    shown = json.loads(run("show", "sf.claim.2.8x", "--json").output)
    assert shown["value"] == 2.8
    assert [f["rule"] for f in shown["findings"]] == ["across-benchmarks", "targets"]


def test_check_prints_and_filters() -> None:
    everything = json.loads(run("check", "--json").output)["findings"]
    only = json.loads(run("check", "--rule", "arithmetic", "--json").output)["findings"]
    assert only == [f for f in everything if f["rule"] == "arithmetic"] != []
    result = run("check", "--rule", "arithmetic")
    assert result.exit_code == 0 and "7M / 400k = 17.5" in result.output
    assert "  - https://arxiv.org/abs/2410.06940 Table 3" in result.output


def test_own_claims_are_listed_and_checked_wherever_the_folder_is_given(own: str) -> None:
    listed = run("--claims", own, "--paper", "mine").output
    assert "=cmd[bold]" in listed  # what users write is no markup
    for words in (("check", "--claims", own), ("--claims", own, "check")):
        assert "800k / 400k = 2, but printed as 3.0" in run(*words).output
    assert "mine." not in run("check").output


def test_invalid_arguments_are_rejected_in_one_sentence(own: str) -> None:
    with pytest.raises(UserError, match="Did you mean 'self_flow'"):
        run("--method", "selfflow")
    with pytest.raises(UserError, match=r"no published number has the id 'mine'\. Did you mean 'mine\.a'"):
        run("show", "mine", "--claims", own)
    with pytest.raises(UserError, match="unknown rule 'arithmetics'"):
        run("check", "--rule", "arithmetics")
    assert run("--json", "--csv").exit_code == 2
    assert run("--paper", "sf", "check").exit_code == 2


def test_guide_shows_the_printed_output(tmp_path: Path) -> None:
    """docs/guides/paper-desk.md: every output on it, every count, every rule, and its example of a file."""
    page = (ROOT / "docs" / "guides" / "paper-desk.md").read_text()
    everything = run("check").output
    blocks = re.findall(r"^```(\w*)\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE)
    outputs = [text for language, text in blocks if not language]
    assert everything.splitlines()[0] in outputs and len(outputs) == 7
    for shown in outputs[2:]:
        assert shown in everything
    assert outputs[1] == run("check", "--rule", "arithmetic", "--rule", "across-benchmarks").output.rstrip()
    numbers = load_literature().numbers
    papers = {number.paper for number in numbers} - {"user"}
    assert f"{len(numbers)} of them from {len(papers)} papers" in page
    assert re.findall(r"^\| ([a-z-]+) \| (?!finds)", page, re.MULTILINE) == list(RULES)
    (tmp_path / "mine.toml").write_text(page.partition("```toml\n")[2].partition("```")[0])
    assert "800k / 400k = 2, as printed: 2.0" in run("check", "--claims", str(tmp_path)).output


@pytest.mark.parametrize("words", [["claims", "check"], ["claims", "--paper", "sf"]])
def test_claims_command_imports_no_numerical_library(words: list[str]) -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'matplotlib', 'mlflow'}"
    script = (
        "import sys; from harness.cli.main import cli; cli.main(sys.argv[1:], standalone_mode=False); "
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
