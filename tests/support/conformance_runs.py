"""The command line of a short run of each method."""

from __future__ import annotations

from harness.config.spec import BackboneSpec
from methods.common.method import Method
from methods.common.stack import Stack


def words(cls: type[Method]) -> list[str]:
    """Return the settings of a tiny run: the method's defaults, with an encoder that needs no file."""
    terms = {f"method.{name}": term for name, term in cls.classes.items()} if issubclass(cls, Stack) else {}
    settings = [word for table, term in (terms or {"method": cls}).items() for word in _settings(table, term)]
    return [f"method.name={name_of(cls)}", *settings]


def _settings(table: str, cls: type[Method]) -> list[str]:
    encoded = cls.Config().resolved(BackboneSpec(size="pico")).needs().encoders
    encoder = [f"{table}.encoder.name=random:small"] if encoded else []
    return [*encoder, *([f"{table}.group=2"] if "group" in cls.Config.model_fields else [])]


def name_of(cls: type[Method]) -> str:
    return cls.Config.model_fields["name"].default
