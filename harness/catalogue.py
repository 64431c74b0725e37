"""What there is to race: what each method needs, what it costs beside plain flow matching, and where it comes from."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from harness import registry
from harness.backbone.sizes import SIZES
from harness.errors import UserError, unknown
from harness.shelf import Shelf

PUBLISHED_SIZES = ("S", "B", "L", "XL")
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


def entries(*, counted: bool = True) -> dict[str, Entry]:
    """Every registered method by name; one that cannot be imported says so in its summary.

    Counting FLOPs takes a fraction of a second for each.
    """
    plain = step_flops("flow") if counted else None
    return {name: _entry(name, plain) for name in registry.names("method")}


def _entry(name: str, plain: int | None) -> Entry:
    try:
        cls = registry.load("method", name)
    except (ImportError, UserError) as error:
        return Entry(f"not available: {error}")
    return Entry(
        describe(cls).partition("\n")[0],
        wants(defaults(cls, "B").needs()),
        step_flops(name) / plain - 1 if plain else None,
        getattr(cls, "source", ""),
        getattr(cls, "headline", ""),
    )


def describe(cls: type) -> str:
    """The docstring of a method's module, where the equations stand; of the class when its module has none."""
    return inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""


def defaults(cls: Any, size: str) -> Any:
    """A method's Config with every default filled in for a backbone size."""
    from harness.spec import BackboneSpec

    return cls.Config().resolved(BackboneSpec(size=size))


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

    from harness.backbone.sit import SiTConfig
    from harness.backbone.sizes import SIZES
    from harness.cost import build_method, count
    from harness.resolve import load_spec

    cls = registry.load("method", name)
    config, backbone = defaults(cls, "B"), SiTConfig(SIZES["B"], 2, LATENTS, 1000)
    seen = [_architecture(encoder.name, backbone.grid) for encoder in config.needs().encoders]
    spec = load_spec("digits", ["backbone.size=B", "train.batch_size=256"])
    spec = spec.model_copy(update={"method": config})
    with torch.device("meta"):  # a projector's weights would take longer to make than to count
        method = build_method(spec, backbone, [network.dim for network in seen])
    return count(method, spec, encoders=seen).step


@cache
def _architecture(encoder: str, grid: tuple[int, int]) -> Any:
    """Width, cost and heads of an encoder on images of 256x256."""
    family, _, model = encoder.partition(":")
    return registry.load("encoder", family).architecture(model, IMAGES, 1000, grid)


def table(kind: str, rows: Mapping[str, Entry | str]) -> Table:
    """What there is of a kind, for the terminal: methods with their costs, anything else with its line of prose."""
    if kind == "methods":
        return _methods_table(rows)
    plain = Table(title=kind, title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, text in rows.items():
        plain.add_row(escape(name), escape(text))
    return plain


def _methods_table(rows: Mapping[str, Entry]) -> Table:
    methods = Table(title="methods", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    methods.add_column("name", no_wrap=True)
    methods.add_column("needs", overflow="fold")
    methods.add_column("extra FLOPs", justify="right")
    methods.add_column("source", overflow="fold")
    methods.add_column("published headline", overflow="fold")
    for name, entry in rows.items():
        needs = ", ".join(entry.needs) if entry.extra_flops is not None else entry.summary
        methods.add_row(*map(escape, (name, needs, percent(entry.extra_flops), entry.source, entry.headline)))
    return methods


def percent(share: float | None) -> str:
    """
    >>> percent(0.2719), percent(0.0), percent(None)
    ('+27.2 %', '0 %', '')
    """
    if share is None:
        return ""
    return f"{100 * share:+.1f} %" if share else "0 %"


@click.command(epilog="Example: flowrace explain self_flow")
@click.argument("method")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def explain(method: str, as_json: bool) -> None:
    """A method's equations, what it needs, and its defaults for SiT-S, B, L and XL."""
    cls = registry.load("method", method)
    needs, settings = wants(defaults(cls, "B").needs()), {s: flat(defaults(cls, s)) for s in PUBLISHED_SIZES}
    source, headline = getattr(cls, "source", ""), getattr(cls, "headline", "")
    if as_json:
        told = {"name": method, "docstring": describe(cls), "needs": needs, "defaults": settings}
        click.echo(json.dumps(told | {"source": source, "headline": headline}, indent=1))
        return
    click.echo(f"{describe(cls)}\n")
    for word, text in (("Needs", ", ".join(needs) or "nothing"), ("Source", source), ("Headline", headline)):
        if text:
            click.echo(f"{word}: {text}")
    Console().print(_defaults_table(settings))


def flat(config: Any) -> dict[str, Any]:
    """The settings of a config by dotted name, its own name left out: what `--set method.NAME=` takes."""
    return dict(_leaves(config.model_dump(mode="json", exclude={"name"}), ()))


def _leaves(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield ".".join((*path, name)), value


def _defaults_table(settings: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = [Column(name, overflow="fold") for name in settings]
    shown = Table(Column("default", no_wrap=True), *columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for name in settings[PUBLISHED_SIZES[0]]:
        values = [values[name] for values in settings.values()]
        shown.add_row(escape(name), *(escape("-" if value in (None, "") else str(value)) for value in values))
    return shown


@click.command("list", epilog="Example: flowrace list methods")
@click.argument("what", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
def list_(what: str | None, as_json: bool) -> None:
    """What there is: methods, encoders, datasets, presets, studies, sizes, samplers. Without a word: all of it."""
    kinds = {
        "methods": lambda: entries(counted=what is not None),
        "encoders": lambda: _described("encoder", suffix=":<model>"),
        "datasets": lambda: _described("dataset"),
        "presets": lambda: _shelf("harness", "presets"),
        "studies": lambda: _shelf("sweeps", "studies"),
        "sizes": _sizes,
        "samplers": lambda: {name: _first_line(function) for name, function in _samplers().items()},
    }
    if what is not None and what not in kinds:
        raise unknown("kind", what, kinds)
    chosen = {name: make() for name, make in kinds.items() if what in (None, name)}
    if as_json:
        click.echo(json.dumps(chosen, indent=1, default=asdict))
        return
    for kind, rows in chosen.items():
        Console(soft_wrap=False).print(table(kind, rows))


def _described(kind: str, suffix: str = "") -> dict[str, str]:
    rows = {}
    for name in registry.names(kind):
        try:
            rows[name + suffix] = _first_line(registry.load(kind, name))
        except (ImportError, UserError) as error:
            rows[name + suffix] = f"not available: {error}"
    return rows


def _first_line(thing: Any) -> str:
    text = thing.__doc__ or ""
    return text.strip().splitlines()[0] if text.strip() else ""


def _shelf(package: str, folder: str) -> dict[str, str]:
    shelf = Shelf(package, folder)
    return {name: shelf.summary(name) for name in shelf.names()}


def _sizes() -> dict[str, str]:
    return {
        name: f"{size.depth} blocks, width {size.width}, {size.heads} heads" for name, size in SIZES.items()
    }


def _samplers() -> dict[str, Any]:
    from harness.sampler import SAMPLERS

    return SAMPLERS
