"""The command line of a short run of each method."""

from __future__ import annotations

from harness.config.spec import BackboneSpec
from methods.common.method import Method


def words(cls: type[Method]) -> list[str]:
    """Return the settings of a tiny run: the method's defaults, with an encoder that needs no file."""
    encoder = (
        ["method.encoder.name=random:small"]
        if cls.Config().resolved(BackboneSpec(size="pico")).needs().encoders
        else []
    )
    group = ["method.group=2"] if "group" in cls.Config.model_fields else []
    return [f"method.name={name_of(cls)}", *encoder, *group]


def name_of(cls: type[Method]) -> str:
    return cls.Config.model_fields["name"].default
