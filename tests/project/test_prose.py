"""scripts/prose.py on small files: each rule finds its mannerism, and code is not searched."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = spec_from_file_location("prose", ROOT / "scripts" / "prose.py")
assert spec is not None and spec.loader is not None
prose = sys.modules[spec.name] = module_from_spec(spec)
spec.loader.exec_module(prose)
RULES = prose.read_rules()


def found(file: Path, source: str) -> dict[str, list[int]]:
    """Return the lines that each rule finds in a file with this text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source, encoding="utf-8")
    places = prose.search(RULES, [file])
    return {name: [place.line for place in own] for name, own in places.items() if own}


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("behind", "Steps behind the checkpoint are run again."),
        ("beside", "It is kept beside the run."),
        ("tell", "The spec tells the size."),
        ("say", "The record says which step."),
        ("there", "A file that is there is kept."),
        ("as", "expected a size, as '16G'"),
        ("as", "a table is expected, as in [method] name"),
        ("so-many", "At most so many images."),
        ("own", "It has a stream of its own."),
        ("anew", "Begin anew."),
        ("whole", "The whole batch."),
        ("apart", "What tells arms apart."),
        ("lies", "The cache lies in home."),
        ("goes-on", "The run goes on."),
        ("takes-for", "What the name takes for logits."),
        ("none-but", "All ranks but for the first."),
        ("personified", "The network sees noise."),
        ("house-terms", "Seeds are run in turn."),
        ("fragment", "Whether a file can be read."),
        ("long-sentence", f"Return {'one more ' * 13}field: it is a long sentence, and two of them."),
    ],
)  # fmt: skip
def test_rule_finds_its_mannerism_in_a_docstring(tmp_path: Path, rule: str, sentence: str) -> None:
    assert found(tmp_path / "a.py", f'"""{sentence}"""\n').get(rule) == [1]


def test_plain_english_passes_every_rule(tmp_path: Path) -> None:
    source = '"""Read a spec.\n\nRaise `UserError` if the file is missing: see `behind.anew`.\n"""\n'
    assert found(tmp_path / "a.py", source) == {}


def test_identifiers_and_quoted_code_are_not_prose(tmp_path: Path) -> None:
    source = 'behind = whole = apart = {"beside": "told"}\n# See `whole`.\n"""Return it.\n\n>>> whole\n"""\n'
    assert found(tmp_path / "a.py", source) == {}
    assert found(tmp_path / "a.md", "```\nbehind\n```\nSee `anew`.\n") == {}
    assert found(tmp_path / "a.toml", 'name = "whole"\n# A whole race.\n') == {"whole": [2]}


def test_messages_are_searched_outside_of_tests_only(tmp_path: Path) -> None:
    source = 'size = 3\nraise ValueError(f"{size} says nothing to {size}")\n'
    assert found(tmp_path / "harness" / "a.py", source) == {"say": [2]}
    assert found(tmp_path / "tests" / "a.py", source) == {}


def test_comments_and_long_lines_that_end_with_one_are_found(tmp_path: Path) -> None:
    long = "x = 1  # " + "word " * 30
    assert found(tmp_path / "a.py", f"# kept beside\n{long}\n") == {"beside": [1], "trailing-comment": [2]}


def test_option_help_is_reported_without_an_allowance(tmp_path: Path) -> None:
    assert found(tmp_path / "a.py", 'option("--n", help="How many.")\n') == {"help": [1]}
    assert RULES["help"].allowed is None and RULES["long-sentence"].allowed is None


def test_names_of_tests_are_searched(tmp_path: Path) -> None:
    source = "def test_refused():\n    pass\n\n\ndef test_refused_when_empty():\n    pass\n"
    assert found(tmp_path / "tests" / "a.py", source) == {"test-names": [1]}


def test_report_counts_rules_above_their_allowance(capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "harness" / "cli" / "a.py"
    places = {"anew": [prose.Place(file, 1, "anew")], "behind": []}
    rules = {name: RULES[name] for name in places}
    assert prose.report(rules, places) == 1
    assert prose.report(rules, {"anew": [], "behind": places["anew"]}) == 0
    assert "harness/cli 1" in capsys.readouterr().out


def test_list_shows_places_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "harness" / "a.py"
    file.parent.mkdir()
    file.write_text('size = 3\n"""Begin anew."""\n')
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    monkeypatch.setattr(prose, "files", lambda: [file])
    monkeypatch.setattr(sys, "argv", ["prose.py", "--list", "anew"])
    assert prose.main() == 0 and capsys.readouterr().out == "harness/a.py:2: Begin anew.\n"
