"""The shift of times by the dimension of latents: its formula, the run id, and data without latents."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from harness.assembly.dimension_shift import shift_of, with_shifts
from harness.assembly.resolve import load_spec
from harness.errors import UserError


def test_preset_has_the_published_shift_in_training_and_sampling() -> None:
    """RAE's configs: time_dist_shift_dim 196608, time_dist_shift_base 4096, Euler with 50 steps."""
    spec = load_spec("rae256")
    assert spec.time.shift == spec.eval.sampler_shift == math.sqrt(196608 / 4096)
    assert (spec.eval.sampler, spec.eval.sampler_steps) == ("euler", 50)


def test_dimension_has_the_run_id_of_its_number() -> None:
    number = math.sqrt(196608 / 4096)
    as_number = [f"time.shift={number}", f"eval.sampler_shift={number}"]
    assert load_spec("rae256").id == load_spec("rae256", as_number).id
    assert load_spec("rae256", ["time.shift=1.0"]).id != load_spec("rae256").id


def test_shift_is_never_below_one() -> None:
    assert shift_of((4, 32, 32)) == shift_of((1, 8, 8)) == 1.0


def test_run_ids_do_not_depend_on_a_default_sampler_shift() -> None:
    from harness.config.spec import canonical
    from harness.records.evaluations import Conditions

    assert "sampler_shift" not in canonical(load_spec("digits").eval)
    moved, plain = Conditions.of_spec({"sampler_shift": 3}), Conditions.of_spec({})
    assert moved.name([plain]) == "sampler_shift=3" and moved.key != plain.key
    assert Conditions.of_spec({"sampler_shift": 1}) == plain


def test_dimension_is_that_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latents.json").write_text(json.dumps({"shape": [64, 16, 16]}))
    monkeypatch.setattr("harness.latents.shards.check_fields", lambda manifest, where: None)
    monkeypatch.setattr("harness.latents.shards.FORMAT", None)
    table = {"data": {"name": "latents", "root": str(tmp_path)}, "eval": {"sampler_shift": "dimension"}}
    assert with_shifts(table, "spec")["eval"] == {"sampler_shift": 2.0}


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        (
            "digits",
            ["time.shift=dimension"],
            "time.shift = 'dimension' is the dimension of latents",
        ),
        ("rae256", ["data.root={here}"], "needs the shape of the latents, but .* has no latents.json"),
        ("rae256", ["time.shift=dimensions"], "time.shift"),
    ],
)
def test_dimension_of_no_latents_is_rejected(
    tmp_path: Path, source: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_spec(source, [text.format(here=tmp_path) for text in overrides])
