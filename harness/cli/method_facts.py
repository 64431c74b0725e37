"""Facts about methods that take seconds to compute: needs, settings, defaults by size, FLOPs of a step.

Those of built-in methods ship with the package (`method_facts.json`), so that lists need neither torch nor
counting. `make counts` writes the file, and a test compares it with a fresh computation. Facts about plug-ins
are computed on use.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from importlib import resources, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.config import registry
from harness.config.encoder_fields import innermost
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.config.method_config import Needs

SIZES = ("S", "B", "L", "XL")
"""Published backbone sizes, for which defaults are listed."""
LATENTS = (4, 32, 32)
"""Shape of a sample for comparing costs: latents of 256x256 images, 256 tokens for SiT-B/2."""
IMAGES = (3, 256, 256)
FILE = "method_facts.json"


class Facts(NamedTuple):
    """A method's source, needs and settings."""

    source: str
    headline: str
    """The main published claim for it, and where it was made."""
    needs: tuple[str, ...]
    defaults: Mapping[str, Mapping[str, Any]]
    """Backbone size -> dotted name of a setting (that of `--set method.NAME=`) -> default."""
    fields: tuple[Mapping[str, Any], ...]
    """Every setting: a `harness.config.fields.SpecField` as a table."""


def facts(name: str, sizes: tuple[str, ...] = SIZES) -> Facts:
    """Return the facts about a method: those shipped with the package, or computed ones.

    Raises `UserError` for an unknown method, and for a plug-in whose settings lack a default at one of the
    sizes.
    """
    if name in registry.METHODS and name in shipped():
        row = shipped()[name]
        needs, fields = tuple(row["needs"]), tuple(row["fields"])
        return Facts(row["source"], row["headline"], needs, row["defaults"], fields)
    return computed(name, sizes)


def computed(name: str, sizes: tuple[str, ...] = SIZES) -> Facts:
    """Return the facts about a method from its class."""
    cls = registry.load("method", name)
    from harness.config.fields import method_fields

    needs = needs_in_words(defaults(cls, "B").needs())
    settings = {size: flat(defaults(cls, size)) for size in sizes}
    # As JSON data, because those of built-in methods are read from a file.
    fields = json.loads(json.dumps([asdict(field) for field in method_fields(cls.Config)]))
    return Facts(getattr(cls, "source", ""), getattr(cls, "headline", ""), needs, settings, tuple(fields))


def flops(name: str) -> int:
    """Return the FLOPs of one training step at SiT-B/2, from the package or counted (up to a second)."""
    if name in registry.METHODS and name in shipped():
        return shipped()[name]["flops"]
    return step_flops(name)


@cache
def shipped() -> dict[str, Any]:
    """Return the facts that ship with the package, by method."""
    return json.loads((resources.files("harness.cli") / FILE).read_text())


def description(name: str) -> str:
    """Return the docstring of a method's module, which has the equations, or else that of its class.

    For built-in methods it is read from the source, because importing a method imports torch.
    """
    if name in registry.METHODS:
        place = registry.METHODS[name]
        return written_docstring(place.partition(":")[0]) or written_docstring(place)
    return describe(registry.load("method", name))


def describe(cls: type) -> str:
    """Return the docstring of a class's module, or else that of the class."""
    return inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""


def written_docstring(place: str) -> str:
    """Return the docstring of a module, or of a class or function at `module:name`, from its source.

    Raises `UserError` if there is no such module.
    """
    module, _, name = place.partition(":")
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f"No module named '{module}'")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef)
    named = (node for node in tree.body if isinstance(node, kinds) and node.name == name)
    return ast.get_docstring(next(named) if name else tree) or ""


def defaults(cls: Any, size: str) -> Any:
    """Return a method's Config with every default filled in for a backbone size.

    Raises `UserError` if a setting has no default, or if the backbone cannot have one of the defaults.
    """
    from harness.config.backbone_spec import BackboneSpec
    from harness.config.tables import validate

    lacks = f"{cls.__module__}:{cls.__qualname__} has no defaults for SiT-{size}"
    config = validate(cls.Config, {}, lacks)
    try:
        return config.resolved(BackboneSpec.model_validate({"size": size}))
    except ValueError as error:
        raise UserError(f"{lacks}: {error}") from error


def flat(config: Any) -> dict[str, Any]:
    """Return the settings of a config by the dotted names that `--set method.NAME=` takes, except `name`."""
    from harness.config.parts import nested_path

    table = config.model_dump(mode="json", exclude={"name"})
    return {nested_path(path).removeprefix("method."): value for path, value in _leaves(table, "method")}


def _leaves(table: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def needs_in_words(needs: Needs) -> tuple[str, ...]:
    """Return what a run requires in addition to the student; empty for plain flow matching."""
    required = {
        " and ".join(f"encoder {innermost(encoder.name)}" for encoder in needs.encoders): bool(
            needs.encoders
        ),
        "its attention maps": needs.attention > 0,
        "an extra token": needs.summary,
        f"{needs.features} further channels": needs.features > 0,
        "EMA teacher": needs.teacher,
        "guided features of a frozen run": needs.guided is not None,
        "a further final layer": bool(needs.outputs),
        "a fusion of blocks": bool(needs.fused),
        "a time per token": needs.times == 0,
        f"{needs.times} times per sample": needs.times > 1,
    }
    return tuple(text for text, is_required in required.items() if is_required)


@cache
def step_flops(name: str) -> int:
    """Count the FLOPs of one training step of a method with its defaults at SiT-B/2, without running it."""
    from dataclasses import replace

    import torch

    from harness.assembly.build import build_method
    from harness.assembly.resolve import load_spec
    from harness.backbone import sizes
    from harness.backbone.sit import SiTConfig
    from harness.costs.flops import count

    cls = registry.load("method", name)
    config, backbone = defaults(cls, "B"), SiTConfig(sizes.SIZES["B"], 2, LATENTS, 1000)
    encoders = [_architecture(encoder.name, backbone.grid) for encoder in config.needs().encoders]
    spec = load_spec("digits", ["backbone.size=B", "train.batch_size=256"])
    spec = spec.model_copy(update={"method": config})
    needs = config.needs()
    backbone = replace(backbone, outputs=needs.outputs, fused=needs.fused, features=needs.features)
    if config.needs().summary:
        backbone = replace(backbone, extra=encoders[0].dim)
    # A projector's weights would take longer to initialize than to count.
    with torch.device("meta"):
        method = build_method(spec, backbone, [network.dim for network in encoders])
    return count(method, spec, encoders=encoders).step


@cache
def _architecture(encoder: str, grid: tuple[int, int]) -> Any:
    """Return the architecture of an encoder on images of 256x256."""
    family, _, model = encoder.partition(":")
    return registry.load("encoder", family).architecture(model, IMAGES, 1000, grid)


def main() -> None:
    """Write the shipped file, next to this module."""
    found = {name: computed(name)._asdict() | {"flops": step_flops(name)} for name in registry.METHODS}
    text = json.dumps(found, indent=1)
    Path(__file__).with_name(FILE).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
