"""The command that lists methods, encoders and other registered names: list."""

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
from harness.config.options import JSON_OPTION
from harness.config.packaged import Shelf
from harness.errors import UserError, unknown
from harness.files.terminal import show

LATENTS = (4, 32, 32)
"""Latents of 256x256 images, on which SiT-B/2 has 256 tokens: costs of methods are compared on them, in
batches of 256."""
IMAGES = (3, 256, 256)


@dataclass(frozen=True)
class Entry:
    """A method with its published defaults."""

    summary: str
    """The first line of its docstring, or the reason why it is not available."""
    needs: tuple[str, ...] = ()
    extra_flops: float | None = None
    """FLOPs of a training step beyond those of `flow`, as a fraction of the latter, at SiT-B/2 (256 tokens,
    batch 256)."""
    source: str = ""
    headline: str = ""
    """The authors' main claim, with its source."""
    available: bool = True


def entries(*, counted: bool = True) -> dict[str, Entry]:
    """Return every registered method by name. The summary of one that is not available has the reason.

    Counting FLOPs takes a fraction of a second for each method that was not counted before (see
    costs/flops_cache.py).
    """
    from harness.costs.flops_cache import step_counts

    found = {name: _loaded(name) for name in registry.names("method")}
    available = [name for name, entry in found.items() if entry.available]
    flops = step_counts(available, step_flops) if counted else {}
    plain = flops.get("flow")
    extra = {name: flops[name] / plain - 1 for name in available if plain and flops.get(name)}
    return {name: replace(entry, extra_flops=extra.get(name)) for name, entry in found.items()}


def _loaded(name: str) -> Entry:
    """Return a method's entry without its cost."""
    try:
        cls = registry.load("method", name)
        needs = wants(defaults(cls, "B").needs())
    except (ImportError, UserError) as error:
        return Entry(f"not available: {error}", available=False)
    source, headline = getattr(cls, "source", ""), getattr(cls, "headline", "")
    return Entry(describe(cls).partition("\n")[0], needs, source=source, headline=headline)


def describe(cls: type) -> str:
    """Return the docstring of a method's module, which has the equations; of its class if the module has
    none."""
    return inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""


def defaults(cls: Any, size: str) -> Any:
    """Return a method's Config with every default filled in for a backbone size.

    Raises `UserError` for a setting without a default, or a default that is not valid for this backbone.
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
    """Return a method's needs in addition to the student as words; empty for plain flow matching."""
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
    """Return the counted FLOPs of one training step of a method with its defaults at SiT-B/2, without
    computing it."""
    import torch

    from harness.assembly.build import build_method
    from harness.assembly.resolve import load_spec
    from harness.backbone.sit import SiTConfig
    from harness.backbone.sizes import SIZES
    from harness.costs.flops import count

    cls = registry.load("method", name)
    config, backbone = defaults(cls, "B"), SiTConfig(SIZES["B"], 2, LATENTS, 1000)
    encoders = [_architecture(encoder.name, backbone.grid) for encoder in config.needs().encoders]
    spec = load_spec("digits", ["backbone.size=B", "train.batch_size=256"])
    spec = spec.model_copy(update={"method": config})
    # Creating a projector's weights would take longer than counting.
    with torch.device("meta"):
        method = build_method(spec, backbone, [network.dim for network in encoders])
    return count(method, spec, encoders=encoders).step


@cache
def _architecture(encoder: str, grid: tuple[int, int]) -> Any:
    """Return width, cost and heads of an encoder on images of 256x256."""
    family, _, model = encoder.partition(":")
    return registry.load("encoder", family).architecture(model, IMAGES, 1000, grid)


def table(kind: str, rows: Mapping[str, Entry | str]) -> Table:
    """Return the table of a kind: methods with their costs, or names with one line of description."""
    methods = {name: row for name, row in rows.items() if isinstance(row, Entry)}
    if methods:
        return _methods_table(methods)
    plain = Table(title=kind, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, text in rows.items():
        plain.add_row(escape(name), escape(str(text)))
    return plain


def _methods_table(rows: Mapping[str, Entry]) -> Table:
    columns = ("name", Column("extra FLOPs", justify="right"), "needs", "source", "published headline")
    methods = Table(*columns, title="methods", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    methods.caption, methods.caption_justify = _CAPTION, "left"
    for name, entry in rows.items():
        cells = (name, percent(entry.extra_flops), _needed(entry), entry.source, entry.headline)
        methods.add_row(*map(escape, cells))
    return methods


def stacked(rows: Mapping[str, Entry]) -> Group:
    """Return the methods for a narrow terminal: name, cost and needs on a line, source and headline below."""
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
    """Return the needs as text: empty for plain flow matching, the reason for a method that is not
    available."""
    return ", ".join(entry.needs) if entry.source or entry.needs else entry.summary


def percent(fraction: float | None) -> str:
    """Return a fraction as a signed percentage.

    >>> percent(0.2719), percent(0.0), percent(None)
    ('+27.2 %', '0 %', '')
    """
    if fraction is None:
        return ""
    return f"{100 * fraction:+.1f} %" if fraction else "0 %"


@click.command("list", epilog="Example: flowrace list methods")
@click.argument("what", required=False)
@JSON_OPTION
def list_(what: str | None, as_json: bool) -> None:
    """List available methods, encoders, codecs, extractors, datasets, presets, studies, sizes or samplers.

    Without an argument, list everything.
    """
    kinds = {
        "methods": lambda: entries(counted=what is not None),
        "encoders": lambda: _described("encoder", suffix=":<model>"),
        "codecs": lambda: _described("codec"),
        "extractors": _extractors,
        "datasets": lambda: _described("dataset"),
        "presets": lambda: _packaged("harness", "presets"),
        "studies": lambda: _packaged("sweeps", "studies"),
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
    """Return the docstring of a class at `module:Class`, read from its source: importing the module may take
    seconds."""
    module, _, name = place.partition(":")
    spec = util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"no module {module}"
    tree = ast.parse(Path(spec.origin).read_text())
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return ast.get_docstring(found) or ""


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _packaged(package: str, folder: str) -> dict[str, str]:
    files = Shelf(package, folder)
    return {name: files.summary(name) for name in files.names()}


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
