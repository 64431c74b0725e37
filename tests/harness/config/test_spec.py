"""The spec: hashed fields, defaults, overrides, and the errors of invalid ones."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.assembly.resolve import PRESETS, load_spec
from harness.config.spec import canonical
from harness.config.tables import merge, parse_override
from harness.errors import UserError

SECTIONS = {
    "backbone_spec": "BackbonePart BackboneParts BackboneSpec",
    "data_spec": "DataPart DataParts DataSpec TextSpec",
    "evaluation_spec": "EvalSpec Scales",
    "method_config": "MethodConfig Needs Schedule",
    "section": "COUNT HASHED_IF_SET LARGEST NOT_HASHED SIDE STEPS Section",
    "training_spec": "Beta DECAYS_TO_THE_END EmaSpec FlowSpec OptimizerSpec StartSpec TimeSpec TrainSpec",
}
"""File of a section -> the names that plug-ins of earlier versions import from `harness.config.spec`."""


@pytest.mark.parametrize("file", SECTIONS)
def test_spec_has_the_names_that_plugins_of_earlier_versions_import(file: str) -> None:
    spec, section = (importlib.import_module(f"harness.config.{name}") for name in ("spec", file))
    for name in SECTIONS[file].split():
        assert getattr(spec, name) is getattr(section, name) and name in spec.__all__


def test_preset_resolves_and_reads_back(tmp_path: Path) -> None:
    for name in PRESETS.names():
        spec = load_spec(name)
        (tmp_path / f"{name}.toml").write_text(spec.to_toml())
        again = load_spec(str(tmp_path / f"{name}.toml"))
        assert again == spec and again.id == spec.id


def test_id_is_the_hash_of_the_canonical_text() -> None:
    spec = load_spec("digits")
    assert re.fullmatch("[0-9a-f]{12}", spec.id)
    assert spec.legacy_id == hashlib.sha256(canonical(spec).encode()).hexdigest()[:12]
    fields = json.loads(canonical(spec))
    del fields["eval"], fields["train"]["steps"]
    trajectory = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert spec.id == hashlib.sha256(trajectory.encode()).hexdigest()[:12]
    text = canonical(spec)
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    "same",
    ["data.root=elsewhere", "data.workers=3", "runtime.device=cuda", "runtime.compile=true",
     "runtime.threads=7", "runtime.shard=true",
     "train.checkpoint_every=3", "train.log_every=9", "train.accumulate=2", "eval.batch_size=3",
     "train.steps=7", "eval.samples=17", "eval.every=3", "eval.guidance=2.0"],
)  # fmt: skip
def test_field_that_cannot_change_weights_is_not_hashed(same: str) -> None:
    base = "cifar10" if same.startswith("data.root") else "digits"
    assert load_spec(base, [same]).id == load_spec(base).id


@pytest.mark.parametrize(
    "other",
    ["seed=1", "train.learning_rate=0.5", "train.decay=linear", "ema.decay=0.5", "backbone.patch=1",
     "data.held_out=0.3", "data.flip=true", "time.kind=logit_normal", "train.precision=bfloat16",
     "method.name=repa",
     "data.fingerprint=0011"],
)  # fmt: skip
def test_field_that_can_change_weights_is_hashed(other: str) -> None:
    assert load_spec("digits", [other]).id != load_spec("digits").id


def test_defaults_that_depend_on_the_backbone_are_resolved() -> None:
    layers = {}
    for size in ("S", "B", "L", "XL"):
        method = load_spec("digits", ["method.name=self_flow", f"backbone.size={size}"]).method
        layers[size] = (method.student_layer, method.teacher_layer)
    assert layers == {"S": (4, 8), "B": (4, 8), "L": (7, 17), "XL": (8, 20)}
    published = {
        s: load_spec("digits", ["method.name=repa", f"backbone.size={s}"]).method.layer
        for s in ("B", "L", "XL")
    }
    assert published == {"B": 4, "L": 8, "XL": 8}
    given_same = load_spec("digits", ["method.name=self_flow", "method.student_layer=2"])
    assert given_same.id == load_spec("digits", ["method.name=self_flow"]).id


def test_method_tables_apply_to_the_chosen_method_only(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('base = "digits"\n[methods.repa]\ncoefficient = 0.25\n[methods.self_flow]\ngamma = 0.1\n')
    assert load_spec(str(file), ["method.name=repa"]).method.coefficient == 0.25
    assert load_spec(str(file), ["method.name=repa", "method.coefficient=1"]).method.coefficient == 1.0
    assert load_spec(str(file)).id == load_spec("digits").id


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.stepz=3"], r"unknown key 'train.stepz'.*Did you mean 'train.steps'"),
        (["trian.steps=3"], r"unknown key 'trian'.*Did you mean 'train.steps'"),
        (["method.name=rep"], r"unknown method 'rep'.*Did you mean 'repa'.*flowrace list methods"),
        (["method.gamma=1"], r"unknown key 'gamma'"),
        (
            ["method.name=repa", "method.encoder.nam=x"],
            r"unknown key 'encoder.nam'.*Did you mean 'method.encoder.name'",
        ),
        (["data.name=digit"], r"unknown dataset 'digit'.*Did you mean 'digits'"),
        (["backbone.size=M"], r"unknown backbone.size 'M'"),
        (["train.steps=ten"], r"train.steps = \"ten\": .*integer"),
        (["train.steps=1.5"], r"train.steps = 1.5: .*integer"),
        (["train.steps=0"], r"train.steps = 0: .*greater than or equal to 1"),
        (["train.steps=true"], r"train.steps = true: .*integer"),
        (["train.learning_rate=nan"], r"train.learning_rate"),
        (["train.betas=[0.9,1.5]"], r"train.betas.1 = 1.5: .*less than 1"),
        (["train.betas=[-0.1,0.9]"], r"train.betas.0 = -0.1: .*greater than or equal to 0"),
        (["ema.decay=1.0"], r"ema.decay = 1.0: .*less than 1"),
        (["eval.sampler=eular"], r"eval.sampler = \"eular\": .*'euler'"),
        (
            ["method.name=self_flow", "method.student_layer=0"],
            r"student_layer = 0: backbone nano has layers 1 to 6",
        ),
        (
            ["method.name=self_flow", "method.teacher_layer=7"],
            r"teacher_layer = 7: backbone nano has layers 1 to 6",
        ),
        (
            ["method.name=self_flow", "method.mask_ratio=0.9"],
            r"mask_ratio = 0.9: .*less than or equal to 0.5",
        ),
        (
            ["methods.selfflow.gamma=0.1"],
            r"unknown method .*methods.NAME.*digits: 'selfflow'.*Did you mean 'self_flow'",
        ),
        (["methods.flow=3"], r"methods.flow = 3: expected a table"),
        (["seed=-1"], r"seed = -1"),
        (["nonsense"], r"expected a.b=value"),
        (["seed.a=1"], r"seed"),
        (["method=3"], r"method must be a table"),
        (["eval.guidance_low=0.9", "eval.guidance_high=0.1"], r"guidance_low"),
        (
            ["method.name=repa", "method.encoder.name=local:small", 'eval.metrics=["fd:local:small"]'],
            r"computed by an encoder that a method aligns to",
        ),
    ],
)
def test_invalid_override_is_rejected_with_its_field(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_spec("digits", overrides)


def test_missing_or_broken_source_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown preset 'digit'.*Did you mean 'digits'"):
        load_spec("digit")
    with pytest.raises(UserError, match="cannot read"):
        load_spec(str(tmp_path / "absent.toml"))
    (tmp_path / "broken.toml").write_text("a = [1,")
    with pytest.raises(UserError, match="is not TOML"):
        load_spec(str(tmp_path / "broken.toml"))


@pytest.mark.parametrize("base", ["5", "[1]", "{ a = 1 }", "true"])
def test_base_that_is_not_a_name_is_rejected(tmp_path: Path, base: str) -> None:
    (tmp_path / "a.toml").write_text(f"base = {base}")
    with pytest.raises(UserError, match=r"a.toml: base = .*: expected the name of a preset, or a file"):
        load_spec(str(tmp_path / "a.toml"))


def test_folder_without_a_spec_does_not_hide_a_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_spec("digits")
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "other"):
        (tmp_path / name).mkdir()
    assert load_spec("digits") == expected
    with pytest.raises(UserError, match=r"cannot read other/spec.toml"):
        load_spec("other")
    (tmp_path / "digits" / "spec.toml").write_text(load_spec("digits", ["seed=7"]).to_toml())
    assert load_spec("digits").seed == 7


tables = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text("ab", min_size=1), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(base=st.dictionaries(st.text("ab", min_size=1), tables, max_size=3))
def test_merge_with_an_empty_or_equal_table_changes_nothing(base: dict) -> None:
    assert merge(base, {}) == merge({}, base) == merge(base, base) == base


@pytest.mark.parametrize(
    ("text", "value"),
    [("a.b=1", 1), ("a.b=1e-3", 1e-3), ("a.b=true", True), ("a.b=[1, 2]", [1, 2]), ("a.b='x'", "x"),
     ("a.b=x/y z", "x/y z"), ("a.b=", "")],
)  # fmt: skip
def test_override_value_is_toml_or_text(text: str, value: object) -> None:
    assert parse_override(text) == ("a.b", value)


def test_setting_of_an_encoder_without_a_name_applies_to_the_default_encoder() -> None:
    words = ["method.name=repa"]
    allowed = load_spec("cifar10", [*words, "method.encoder.download=true"])
    assert allowed.method.encoder.name == load_spec("cifar10", words).method.encoder.name
    assert allowed.method.encoder.download and allowed.id == load_spec("cifar10", words).id
