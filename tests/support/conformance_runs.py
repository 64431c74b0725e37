"""The command line of a short run of each method."""

from __future__ import annotations

from harness.config.backbone_spec import BackboneSpec
from methods.common.alignment import EncoderSpec
from methods.common.method import Method
from methods.common.stack import Stack

ALIKE = {"diversedit": "dispersive", "reed": "repa", "self_transcendence": "sra2"}
"""Methods that a run treats as another one, which the longest tests of runs have in their place."""
SLOW = (*ALIKE, "redi")
"""Methods whose conformance tests are in the slow suite; those of their formulas are in the fast one."""


def words(cls: type[Method]) -> list[str]:
    """Return the settings of a tiny run: the method's defaults, with an encoder that needs no file."""
    terms = {f"method.{name}": term for name, term in cls.classes.items()} if issubclass(cls, Stack) else {}
    settings = [word for table, term in (terms or {"method": cls}).items() for word in _settings(table, term)]
    return [f"method.name={name_of(cls)}", *settings]


def _settings(table: str, cls: type[Method]) -> list[str]:
    group = [f"{table}.group=2"] if "group" in cls.Config.model_fields else []
    return [*encoder_words(table, cls), *group]


def encoder_words(table: str, cls: type[Method]) -> list[str]:
    """Return settings that give a method encoders without files, if it needs some by default."""
    if not cls.Config().resolved(BackboneSpec(size="pico")).needs().encoders:
        return []
    fields = cls.Config.model_fields.items()
    names = [name for name, info in fields if isinstance(info.default, EncoderSpec)]
    return [f"{table}.{name}.name=random:small" for name in names]


def name_of(cls: type[Method]) -> str:
    return cls.Config.model_fields["name"].default
