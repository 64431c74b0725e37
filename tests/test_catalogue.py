"""What `list methods` and `explain` say, against costs on paper and the published layers."""

from __future__ import annotations

import io
import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from harness import catalogue, registry
from harness.errors import UserError

D, T, WIDTH, BATCH = 768, 256, 2048, 256


@pytest.fixture(scope="module")
def entries() -> dict[str, catalogue.Entry]:
    return catalogue.entries()


def forward(depth: int = 12) -> int:
    """On paper, one sample of SiT-B/2 with one time: 2 x multiply-adds of embeddings, blocks and, at the end, the last layer."""
    block = 12 * T * D * D + 2 * T * T * D + 6 * D * D
    final = 2 * D * D + T * D * 16 if depth == 12 else 0
    return 2 * (T * D * 16 + 256 * D + D * D + depth * block + final)


def test_every_method_is_there(entries: dict[str, catalogue.Entry]) -> None:
    assert list(entries) == registry.names("method")
    assert all(entry.source and entry.summary and entry.extra_flops is not None for entry in entries.values())


def test_extra_flops_are_those_on_paper(entries: dict[str, catalogue.Entry]) -> None:
    """To a thousandth: optimizer and EMA, and the second row of modulation, are below that."""
    assert entries["flow"].extra_flops == 0
    projector = 6 * T * (D * WIDTH + WIDTH * WIDTH + WIDTH * D)
    encoder = 2 * (
        12 * (12 * 257 * D * D + 2 * 257 * 257 * D) + T * D * 3 * 14 * 14
    )  # ViT-B/14 at 224, one class token
    step = 3 * forward()
    assert entries["repa"].extra_flops == pytest.approx((projector + encoder) / step, abs=1e-3)
    head, levels = 6 * T * 4 * D * D, 6 * (12 * 6 + 2 + 1) * D * D
    assert entries["self_flow"].extra_flops == pytest.approx((forward(8) + head + levels) / step, abs=1e-3)


def test_the_table_shows_needs_and_sources(entries: dict[str, catalogue.Entry]) -> None:
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(catalogue.table("methods", entries))
    shown = console.export_text()
    for name in ("self_flow", "EMA teacher, 2 times per sample", "arXiv 2603.06507", "dinov2", "0 %"):
        assert name in shown


def test_explain_prints_the_published_layers() -> None:
    result = CliRunner().invoke(catalogue.explain, ["repa", "--json"])
    told = json.loads(result.output)
    assert {size: told["defaults"][size]["layer"] for size in told["defaults"]} == {
        "S": 4,
        "B": 4,
        "L": 8,
        "XL": 8,
    }
    assert told["defaults"]["B"]["encoder.name"] == "timm:vit_base_patch14_dinov2.lvd142m"
    assert told["needs"] == ["encoder timm:vit_base_patch14_dinov2.lvd142m"]


@pytest.mark.parametrize("name", registry.names("method"))
def test_explain_prints_equations_and_every_default(name: str) -> None:
    cls = registry.load("method", name)
    result = CliRunner(env={"COLUMNS": "200"}).invoke(catalogue.explain, [name])
    assert result.exit_code == 0 and catalogue.describe(cls) in result.output and "L = " in result.output
    assert all(field in result.output for field in cls.Config.model_fields if field != "name")


def test_an_unknown_method_is_a_mistake_with_a_hint() -> None:
    result = CliRunner().invoke(catalogue.explain, ["self-flow"])
    assert isinstance(result.exception, UserError) and "Did you mean 'self_flow'?" in str(result.exception)
