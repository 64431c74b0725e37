"""What there is to race: what each method needs, what it costs beside plain flow matching, and where it comes from."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from harness.backbone.sizes import SIZES
from harness.config import registry
from harness.config.packaged import PackagedToml
from harness.errors import UserError, unknown
from harness.files.terminal import show

LATENTS = (4, 32, 32)
"""SiT-B/2 has 256 tokens on these: what costs are compared at, with images of 256x256 behind them and batches of 256."""
IMAGES = (3, 256, 256)


@dataclass(frozen=True)
class Entry:
    """A method with its published defaults."""

    summary: str
    """The first line of its docstring, or why it cannot be had."""
    needs: tuple[str, ...] = ()
    extra_flops: float | None = None
    """FLOPs of a training step at SiT-B/2 (256 tokens, batch 256) beyond those of `flow`, as a share of the latter."""
    source: str = ""
    headline: str = ""
    """What its authors claim for it, and where."""
    available: bool = True


def entries(*, counted: bool = True) -> dict[str, Entry]:
    """Every registered method by name; one that cannot be imported, or has no defaults, says so in its summary.

    Counting FLOPs takes a fraction of a second for each method that was not counted before (see tally.py).
    """
    from harness.costs.flops_cache import step_counts

    found = {name: _loaded(name) for name in registry.names("method")}
    there = [name for name, entry in found.items() if entry.available]
    flops = step_counts(there, step_flops) if counted else {}
    plain = flops.get("flow")
    extra = {name: flops[name] / plain - 1 for name in there if plain and flops.get(name)}
    return {name: replace(entry, extra_flops=extra.get(name)) for name, entry in found.items()}


def _loaded(name: str) -> Entry:
    """A method's entry, its cost not yet counted."""
    try:
        cls = registry.load("method", name)
        needs = wants(defaults(cls, "B").needs())
    except (ImportError, UserError) as error:
        return Entry(f"not available: {error}", available=False)
    source, headline = getattr(cls, "source", ""), getattr(cls, "headline", "")
    return Entry(describe(cls).partition("\n")[0], needs, source=source, headline=headline)


def describe(cls: type) -> str:
    """The docstring of a method's module, where the equations stand; of the class when its module has none."""
    return inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""


def defaults(cls: Any, size: str) -> Any:
    """A method's Config with every default filled in for a backbone size.

    Raises `UserError` for a method with a setting that has no default, or whose defaults this backbone cannot have.
    """
    from harness.config.spec import BackboneSpec
    from harness.config.tables import validate

    lacks = f"{cls.__module__}:{cls.__qualname__} has no defaults for SiT-{size}"
    config = validate(cls.Config, {}, lacks)
    try:
        return config.resolved(BackboneSpec(size=size))
    except ValueError as error:
        raise UserError(f"{lacks}: {error}") from error


def wants(needs: Any) -> tuple[str, ...]:
    """Needs as words: what a run must bring beside the student, empty for plain flow matching."""
    words = {
        " and ".join(f"encoder {encoder.name}" for encoder in needs.encoders): bool(needs.encoders),
        "its attention maps": needs.attention > 0,
        "an extra token": needs.summary,
        "EMA teacher": needs.teacher,
        "a time per token": needs.times == 0,
        f"{needs.times} times per sample": needs.times > 1,
    }
    return tuple(word for word, wanted in words.items() if wanted)


@cache
def step_flops(name: str) -> int:
    """Counted FLOPs of one training step of a method with its defaults at SiT-B/2; computes and allocates nothing."""
    import torch

    from harness.assembly.build import build_method
    from harness.assembly.resolve import load_spec
    from harness.backbone.sit import SiTConfig
    from harness.backbone.sizes import SIZES
    from harness.costs.flops import count

    cls = registry.load("method", name)
    config, backbone = defaults(cls, "B"), SiTConfig(SIZES["B"], 2, LATENTS, 1000)
    seen = [_architecture(encoder.name, backbone.grid) for encoder in config.needs().encoders]
    spec = load_spec("digits", ["backbone.size=B", "train.batch_size=256"])
    spec = spec.model_copy(update={"method": config})
    with torch.device("meta"):  # a projector's weights would take longer to make than to count
        if config.needs().summary:
            backbone = replace(backbone, extra=seen[0].dim)
        method = build_method(spec, backbone, [network.dim for network in seen])
    return count(method, spec, encoders=seen).step


@cache
def _architecture(encoder: str, grid: tuple[int, int]) -> Any:
    """Width, cost and heads of an encoder on images of 256x256."""
    family, _, model = encoder.partition(":")
    return registry.load("encoder", family).architecture(model, IMAGES, 1000, grid)


def table(kind: str, rows: Mapping[str, Entry | str]) -> Table:
    """What there is of a kind: methods with their costs, or anything with its line of prose."""
    if all(isinstance(row, Entry) for row in rows.values()):
        return _methods_table(rows)
    plain = Table(title=kind, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, text in rows.items():
        plain.add_row(escape(name), escape(text))
    return plain


def _methods_table(rows: Mapping[str, Entry]) -> Table:
    """A line for each method."""
    columns = ("name", Column("extra FLOPs", justify="right"), "needs", "source", "published headline")
    methods = Table(*columns, title="methods", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    methods.caption, methods.caption_justify = _CAPTION, "left"
    for name, entry in rows.items():
        cells = (name, percent(entry.extra_flops), _needed(entry), entry.source, entry.headline)
        methods.add_row(*map(escape, cells))
    return methods


def stacked(rows: Mapping[str, Entry]) -> Group:
    """The methods for a narrow terminal: name, cost and needs in a line, source and headline beneath."""
    width = max(map(len, rows))
    parts: list[Any] = [_line("methods", "extra FLOPs", "needs", width=width, style="bold")]
    for name, entry in rows.items():
        parts.append(_line(name, percent(entry.extra_flops), _needed(entry), width=width))
        about = [text for text in (entry.source, entry.headline) if text]
        parts += [Padding(Text(text, style="dim"), (0, 0, 0, 4)) for text in about]
    return Group(*parts, Text(f"\n{_CAPTION}", style="dim"))


_CAPTION = "Extra FLOPs: of a training step beyond flow's, counted at SiT-B/2, 256 tokens, batch 256."


def _line(name: str, flops: str, needs: str, *, width: int, style: str = "") -> Table:
    columns = (Column(width=width), Column(width=11, justify="right"), Column(overflow="fold"))
    line = Table.grid(*columns, padding=(0, 2, 0, 0))
    line.add_row(*map(escape, (name, flops, needs)), style=style)
    return line


def _needed(entry: Entry) -> str:
    """In the words of the table: nothing for plain flow matching, the reason for a method that is not available."""
    return ", ".join(entry.needs) if entry.source or entry.needs else entry.summary


def percent(share: float | None) -> str:
    """
    >>> percent(0.2719), percent(0.0), percent(None)
    ('+27.2 %', '0 %', '')
    """
    if share is None:
        return ""
    return f"{100 * share:+.1f} %" if share else "0 %"


@click.command("list", epilog="Example: flowrace list methods")
@click.argument("what", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def list_(what: str | None, as_json: bool) -> None:
    """What there is: methods, encoders, codecs, extractors, datasets, presets, studies, sizes, samplers. Without a word: all."""
    kinds = {
        "methods": lambda: entries(counted=what is not None),
        "encoders": lambda: _described("encoder", suffix=":<model>"),
        "codecs": lambda: _described("codec"),
        "extractors": _extractors,
        "datasets": lambda: _described("dataset"),
        "presets": lambda: _shelf("harness", "presets"),
        "studies": lambda: _shelf("sweeps", "studies"),
        "sizes": _sizes,
        "samplers": lambda: {name: _first_line(function.__doc__) for name, function in _samplers().items()},
    }
    if what is not None and what not in kinds:
        raise unknown("kind", what, kinds)
    chosen = {name: make() for name, make in kinds.items() if what in (None, name)}
    if as_json:
        click.echo(json.dumps(chosen, indent=1, default=asdict))
        return
    for kind, rows in chosen.items():
        if kind == "methods" and what is None:
            rows = {name: entry.summary for name, entry in rows.items()}
        show(table(kind, rows), narrow=stacked(rows) if kind == what == "methods" else None)


def _described(kind: str, suffix: str = "") -> dict[str, str]:
    ours = {"encoder": registry.ENCODERS, "codec": registry.CODECS, "dataset": registry.DATASETS}[kind]
    rows = {}
    for name in registry.names(kind):
        try:
            text = written_docstring(ours[name]) if name in ours else registry.load(kind, name).__doc__
        except UserError as error:
            text = f"not available: {error}"
        rows[name + suffix] = _first_line(text)
    return rows


def written_docstring(place: str) -> str:
    """The docstring of a class at `module:Class`, read from its source: importing what it needs may take seconds."""
    module, _, name = place.partition(":")
    tree = ast.parse(Path(util.find_spec(module).origin).read_text())
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return ast.get_docstring(found) or ""


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _shelf(package: str, folder: str) -> dict[str, str]:
    shelf = PackagedToml(package, folder)
    return {name: shelf.summary(name) for name in shelf.names()}


def _sizes() -> dict[str, str]:
    return {
        name: f"{size.depth} blocks, width {size.width}, {size.heads} heads" for name, size in SIZES.items()
    }


def _extractors() -> dict[str, str]:
    from metrics.extractors.registry import extractors

    rows = {}
    for row in extractors():
        width = f", {row.dim} features" if row.dim else ""
        rows[row.name] = f"for {row.modality}{width}" + (
            f"; not available: {row.install}" if row.install else ""
        )
    return rows


def _samplers() -> dict[str, Any]:
    from harness.flow.samplers import SAMPLERS

    return SAMPLERS
