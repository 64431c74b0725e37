"""A backbone and its condition fit each other, or the spec is refused with what to type."""

from __future__ import annotations

import pytest

from harness.assembly.resolve import load_spec
from harness.errors import UserError


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("kind=mmdit", r"is conditioned on text; name its encoder, for example --set text.encoder="),
        ("kind=unet", "backbone.kind"),
        ("initial=released", r"backbone.initial = released needs backbone.kind = .mmdit.; leave it out"),
        ("text_time=min", r"backbone.text_time = min needs backbone.kind = .mmdit.; leave it out"),
    ],
)
def test_backbone_of_another_condition_is_refused(setting: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load_spec("digits", [f"backbone.{setting}"])


def test_published_size_of_mmdit_is_a_size() -> None:
    assert load_spec("digits", ["backbone.size=T2I"]).backbone.depth == 24
    with pytest.raises(UserError, match=r"unknown backbone.size 'T2J' .*Did you mean 'T2I'"):
        load_spec("digits", ["backbone.size=T2J"])


def test_kind_and_its_choices_change_the_run_id_and_their_defaults_do_not() -> None:
    spec = load_spec("digits")
    backbone = spec.backbone.model_dump()
    assert load_spec("digits", ["backbone.kind=sit", "backbone.initial=zero"]).id == spec.id
    changes = [{"kind": "mmdit"}, {"initial": "released"}, {"text_time": "clean"}]
    ids = {
        spec.model_copy(update={"backbone": type(spec.backbone)(**(backbone | change))}).id
        for change in changes
    }
    assert len(ids | {spec.id}) == 4
