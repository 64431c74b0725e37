"""`flowrace list`: everything that can be raced; methods with their needs, extra cost and source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import get_args

import click
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from harness.backbone.sizes import SIZES, TEXT_TO_IMAGE
from harness.cli import method_facts
from harness.cli.method_facts import written_docstring
from harness.config import registry
from harness.config.options import JSON_OPTION
from harness.config.packaged import PackagedToml
from harness.errors import UserError, unknown
from harness.files.terminal import show


@dataclass(frozen=True)
class Entry:
    """A method with its published defaults."""

    summary: str
    """First line of its docstring, or the reason why it is not available."""
    needs: tuple[str, ...] = ()
    extra_flops: float | None = None
    """FLOPs of a training step beyond those of `flow`, as a fraction of the latter, at SiT-B/2 (256 tokens,
    batch 256)."""
    source: str = ""
    headline: str = ""
    """The authors' main claim and where they make it."""
    available: bool = True


def entries(*, counted: bool = True) -> dict[str, Entry]:
    """Return every registered method by name.

    A method that cannot be imported or has no defaults has the reason as its summary. Built-in methods come
    from `method_facts.json`; counting the FLOPs of a plug-in takes up to a second.
    """
    rows = {name: _uncounted(name) for name in registry.names("method")}
    available = [name for name, entry in rows.items() if entry.available]
    flops = {name: method_facts.flops(name) for name in available} if counted else {}
    plain = flops.get("flow")
    extra = {name: flops[name] / plain - 1 for name in available if plain and flops.get(name)}
    return {name: replace(entry, extra_flops=extra.get(name)) for name, entry in rows.items()}


def _uncounted(name: str) -> Entry:
    """Return a method's entry without its cost."""
    try:
        about = method_facts.facts(name, sizes=("B",))
        summary = _first_line(method_facts.description(name))
    except (ImportError, UserError) as error:
        return Entry(f"not available: {error}", available=False)
    return Entry(summary, about.needs, source=about.source, headline=about.headline)


def table(kind: str, rows: Mapping[str, Entry | str]) -> Table:
    """Return the table of a kind: methods with costs and needs, or names with a line of description."""
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
        cells = (name, percent(entry.extra_flops), _needs(entry), entry.source, entry.headline)
        methods.add_row(*map(escape, cells))
    return methods


def stacked(rows: Mapping[str, Entry]) -> Group:
    """Return the methods for a narrow terminal: name, cost and needs on a line, source and headline below."""
    width = max(map(len, rows))
    parts: list[RenderableType] = [_line("methods", "extra FLOPs", "needs", width=width, style="bold")]
    for name, entry in rows.items():
        parts.append(_line(name, percent(entry.extra_flops), _needs(entry), width=width))
        about = [text for text in (entry.source, entry.headline) if text]
        parts += [Padding(Text(text, style="dim"), (0, 0, 0, 4)) for text in about]
    return Group(*parts, Text(f"\n{_CAPTION}", style="dim"))


_CAPTION = "Extra FLOPs: cost of a training step beyond that of flow, at SiT-B/2, 256 tokens, batch 256."


def _line(name: str, flops: str, needs: str, *, width: int, style: str = "") -> Table:
    columns = (Column(width=width), Column(width=11, justify="right"), Column(overflow="fold"))
    line = Table.grid(*columns, padding=(0, 2, 0, 0))
    line.add_row(*map(escape, (name, flops, needs)), style=style)
    return line


def _needs(entry: Entry) -> str:
    """Return the needs as text: empty for plain flow matching, the reason for an unavailable method."""
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
    """List one kind of what is available, or everything.

    The kinds are methods, encoders, text_encoders, codecs, extractors, metrics, datasets, tasks, presets,
    studies, sizes and samplers.
    """
    kinds = {
        "methods": lambda: entries(counted=what is not None),
        "encoders": lambda: _described("encoder", suffix=":<model>"),
        "text_encoders": _text_encoders,
        "codecs": lambda: _described("codec"),
        "extractors": _extractors,
        "metrics": _metrics,
        "datasets": lambda: _described("dataset"),
        "tasks": _tasks,
        "presets": lambda: _packaged("harness", "presets"),
        "studies": lambda: _packaged("sweeps", "studies"),
        "sizes": _sizes,
        "samplers": _samplers,
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
    ours = {
        "encoder": registry.ENCODERS,
        "text_encoder": registry.TEXT_ENCODERS,
        "codec": registry.CODECS,
        "dataset": registry.DATASETS,
    }[kind]
    rows = {}
    for name in registry.names(kind):
        try:
            text = written_docstring(ours[name]) if name in ours else registry.load(kind, name).__doc__
        except UserError as error:
            text = f"not available: {error}"
        rows[name + suffix] = _first_line(text)
    return rows


def _text_encoders() -> dict[str, str]:
    models = {
        "transformers": ":<folder or name>",
        "open_clip": ":<model>",
        "local": ":text",
        "random": ":text",
    }
    return {f"{name}{models.get(name, '')}": text for name, text in _described("text_encoder").items()}


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _packaged(package: str, folder: str) -> dict[str, str]:
    files = PackagedToml(package, folder)
    return {name: files.summary(name) for name in files.names()}


def _sizes() -> dict[str, str]:
    named = SIZES | TEXT_TO_IMAGE
    return {
        name: f"{size.depth} blocks, width {size.width}, {size.heads} heads" for name, size in named.items()
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


def _metrics() -> dict[str, str]:
    from harness.evaluation.metric_table import described

    return described()


def _tasks() -> dict[str, str]:
    from harness.environments.base import task_names

    return task_names()


def _samplers() -> dict[str, str]:
    from harness.config.evaluation_spec import EvalSpec

    names = get_args(EvalSpec.model_fields["sampler"].annotation)
    return {name: _first_line(written_docstring(f"harness.flow.samplers:{name}")) for name in names}
