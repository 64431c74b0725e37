"""The database of published numbers: its values equal the reference, and invalid files are rejected."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.config import registry
from harness.errors import UserError
from reports.literature.database import load_literature, published_curves, select
from reports.literature.entries import UNSTATED
from tests.conftest import ROOT, beside

GOOD = """
paper = "mine"
title = "Mine"
[methods]
"Ours" = "self_flow"
[[table]]
source = "Table 1"
status = "table"
dataset = "ImageNet-256"
model = "SiT-B/2"
metric = "FID"
steps = 400_000
numbers = [
    { id = "mine.a", method = "Ours", value = 5.70 },
    { id = "mine.b", method = "Base", value = 6, steps = 7_000_000 },
]
[[ratio]]
id = "mine.ratio"
source = "abstract"
status = "abstract"
method = "Ours"
baseline = "Base"
dataset = "ImageNet-256"
value = 17.5
of = ["mine.b", "mine.a"]
"""

SPEEDS = (
    "base",
    "REPA-DINOv2",
    "REPA-DINOv3",
    "contrastive-FM",
    "TREAD",
    "SPRINT",
    "REPA-E-VAE",
    "FLUX.2-AE",
)
ADDED = {
    "sf.Self-Flow.FLUX.2-625M.steps_to_FID_3.95",
    "prx.short-captions.PRX-1.2B.100000.FID",
    *(f"prx.{method}.PRX-1.2B.100000.batches-per-second" for method in SPEEDS),
    *(f"repa.{arm}.MMDiT.150000.FID.{kind}" for arm in ("vanilla", "REPA") for kind in ("ODE", "SDE")),
}
"""Numbers that the reference has in prose."""


@pytest.fixture(scope="module")
def reference() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    file = beside("FLOWRACE_REFERENCE", "reference") / "published.yaml"
    return yaml.safe_load(file.read_text())["claims"]


def own(folder: Path, text: str, name: str = "mine.toml") -> Path:
    (folder / name).write_text(text)
    return folder


def test_database_has_every_number_of_the_reference(
    reference: list[dict[str, Any]],
) -> None:
    """All fields are equal, but the reference has the number of samples in the sampler's name or the note.

    It leaves a field empty where the database has "unstated" or no entry.
    """
    known = load_literature().by_id
    assert len(reference) > 700
    for row in reference:
        number = known[row["claim_id"]]
        assert number.arxiv == (row["arxiv"] or None), row["claim_id"]
        for field in ("paper", "method", "baseline", "metric", "better", "dataset", "model"):
            assert getattr(number, field) == row[field], (row["claim_id"], field)
        for field in ("steps", "value", "guidance", "status", "source"):
            assert getattr(number, field) == row[field], (row["claim_id"], field)
        sampler, _, few = row["sampler"].partition(", ")
        assert number.sampler == (sampler or UNSTATED), row["claim_id"]
        ten = "10K samples" in (few, *row.get("note", "").split(", "))
        assert (number.samples == 10_000) == ten, row["claim_id"]


def test_database_has_the_statuses_of_the_reference(reference: list[dict[str, Any]]) -> None:
    """The only additions are numbers that no table of the reference contains.

    These are SRA's text, the samplings of one network, PRX's speeds and short captions, REPA's COCO table as
    others quote it, and the step that the 2.8x of Self-Flow is read at.
    """
    ids = {row["claim_id"] for row in reference}
    shared = [number for number in load_literature().numbers if number.id in ids]
    assert Counter(n.status for n in shared) == Counter(row["status"] for row in reference)
    beyond = {number.id for number in load_literature().numbers} - ids
    assert all(name.startswith(("sra.text.", "user.wocfg2")) or name in ADDED for name in beyond), beyond


def test_printed_places_fit_the_value() -> None:
    """Rounding a value to its printed places does not change it."""
    for number in load_literature().numbers:
        if isinstance(number.value, float):
            assert round(number.value, number.places) == pytest.approx(number.value, rel=1e-12), number.id


def test_files_have_one_paper_each_and_readable_lines() -> None:
    files = sorted((ROOT / "reports" / "claims").glob("*.toml"))
    papers = [tomllib.loads(file.read_text())["paper"] for file in files]
    assert len(set(papers)) == len(papers) == len({number.paper for number in load_literature().numbers})
    for file in files:
        lines = file.read_text().splitlines()
        assert lines[0].startswith("# ") and max(map(len, lines)) < 400, file.name


def test_translated_methods_are_registered() -> None:
    """A typing error in a translation would hide a baseline."""
    for file in (ROOT / "reports" / "claims").glob("*.toml"):
        called = set(tomllib.loads(file.read_text()).get("methods", {}).values())
        assert called <= set(registry.names("method")), file.name


def test_own_claims_are_added(tmp_path: Path) -> None:
    literature = load_literature(own(tmp_path, GOOD))
    number = literature.by_id["mine.a"]
    assert len(literature.numbers) == len(load_literature().numbers) + 2
    assert (number.arm, number.value, number.places, number.title) == ("self_flow", 5.7, 2, "Mine")
    assert literature.by_id["mine.b"].steps == 7_000_000 and literature.by_id["mine.b"].places == 0
    assert [n.id for n in literature.of(literature.ratios[-1])] == ["mine.b", "mine.a"]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        (
            'status = "table"',
            'status = "tabel"',
            ("table 1, number 1 ('mine.a')", "status = 'tabel'", "figure_"),
        ),
        ("value = 5.70", 'value = "5.70", vlaue = 1', ("unknown field 'vlaue'", "Did you mean 'value'?")),
        ('model = "SiT-B/2"\n', "", ("mine.a", "model is missing")),
        ("value = 5.70", "value = nan", ("mine.a", "value", "finite")),
        ("value = 5.70", "value = true", ("mine.a", "value")),
        ("steps = 400_000", "steps = 4e5", ("mine.a", "steps")),
        ('"mine.b", method', '"mine.a", method', ("'mine.a' is already used",)),
        ('"mine.a", method', '"sit.SiT.SiT-B-2.400000.FID", method', ("is already used", "sit.toml")),
        (
            'of = ["mine.b", "mine.a"]',
            'of = ["mine.b", "mine.c"]',
            ("'mine.ratio'", "mine.c", "Did you mean"),
        ),
        ('of = ["mine.b", "mine.a"]', 'of = ["mine.b"]', ("ratio 1 ('mine.ratio')", "of")),
        ("value = 17.5", "value = -17.5", ("ratio 1 ('mine.ratio')", "value = -17.5", "greater than 0")),
        ('paper = "mine"', "", ("paper is missing",)),
        ("[[ratio]]", "[[ration]]", ("unknown field 'ration'", "Did you mean 'ratio'?")),
        ("numbers = [", "nmbers = [", ("table 1", "numbers must be a list")),
        ("[[ratio]]", "[[ratio", ("cannot be read as TOML",)),
    ],
)
def test_invalid_file_is_named_with_its_entry_and_field(
    tmp_path: Path, old: str, new: str, parts: tuple[str, ...]
) -> None:
    assert old in GOOD
    with pytest.raises(UserError) as refused:
        load_literature(own(tmp_path, GOOD.replace(old, new)))
    message = str(refused.value)
    assert "mine.toml" in message and "\n" not in message.split("cannot be read")[0]
    assert all(part in message for part in parts), message


def test_folder_without_claims_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \*\.toml file in it"):
        load_literature(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_literature(tmp_path / "absent")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read as TOML"):
        load_literature(tmp_path)


def test_select_accepts_printed_and_shared_names() -> None:
    numbers = load_literature().numbers
    by_arm = {n.id for n in select(numbers, method="self_flow", metric="fid", model="SiT-XL/2")}
    by_name = {n.id for n in select(numbers, method="Self-Flow", metric="FID", model="sit-xl/2")}
    assert "sf.Self-Flow.SiT-XL-2.4000000.FID" in by_arm & by_name
    assert "as.Self-Flow.XL-2.4000000.FID" in by_arm  # printed as XL/2
    assert not any(n.status != "press" for n in select(numbers, status="press"))
    with pytest.raises(UserError, match="Did you mean 'self_flow'"):
        select(numbers, method="selfflow")


def test_published_curves_are_separate_by_source_and_protocol() -> None:
    """REPA's curve is Table 7 of its paper; readings off figures and guided numbers are separate curves."""
    curves = {
        (c.source.rpartition("06940 ")[2], c.guidance): c for c in published_curves("repa", "XL", "fid")
    }
    table = curves["Table 7", "none"]
    assert table.steps == (50_000, 100_000, 200_000, 400_000, 4_000_000)
    assert table.values == (52.3, 19.4, 11.1, 7.9, 5.9)
    assert (table.paper, table.status, table.sampler, table.dataset) == (
        "repa",
        "table",
        "SDE250",
        "ImageNet-256",
    )
    assert {c.status for c in published_curves("self_flow", "SiT-XL/2", "FID")} == {"figure_estimate"}
    assert all(list(c.steps) == sorted(set(c.steps)) for c in curves.values())


def test_published_curves_accept_sizes_and_are_empty_for_unknown_names() -> None:
    assert published_curves("repa", "B", "FID") == published_curves("repa", "SiT-B/2", "FID") != ()
    assert published_curves("repa", "B/2", "FID") == published_curves("repa", "B", "FID")
    assert published_curves("no_such_method", "B", "FID") == ()
    assert published_curves("repa", "XL", "FID", dataset="ImageNet-512") == ()
    assert all(len(c.steps) >= 5 for c in published_curves("repa", "XL", "FID", least=5))
