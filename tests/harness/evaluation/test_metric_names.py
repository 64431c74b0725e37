"""Metric names: their meaning, the location of their network, and the encoders that they favour."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tomli_w
import torch

from harness.assembly.resolve import load_spec
from harness.config.spec import canonical
from harness.errors import UserError
from harness.evaluation.checks import check_impartial
from harness.evaluation.metric_names import (
    OVER_ANY,
    favoured,
    is_same_network,
    located,
    metric_spec,
)
from metrics.suite import RESERVED
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study

DINO = "timm:vit_small_patch14_dinov2"


def script(path: Path, scale: float = 1.0) -> Path:
    """Save a network whose features are scaled means of the channels."""

    class Means(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3)) * scale

    torch.jit.trace(Means(), torch.zeros(2, 3, 8, 8)).save(path)
    return path


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_name_selects_one_network(name: str) -> None:
    found = metric_spec(name)
    assert found.name == name and found.value in {*OVER_ANY, "sfid"}
    others = {"cmmd": "clip-vit-l-336", "fvd": "i3d", "fvd_infinity": "i3d"}
    assert found.extractor == others.get(name, "inception")


@pytest.mark.parametrize("value", OVER_ANY)
def test_metric_name_accepts_any_network(value: str) -> None:
    assert metric_spec(f"{value}:local") == (f"{value}:local", value, "local")
    assert metric_spec(f"{value}:timm:resnet18").extractor == "timm:resnet18"


def test_spec_rejects_accuracy_by_inception() -> None:
    with pytest.raises(
        UserError,
        match=r"eval.metrics 'accuracy:inception': accuracy needs a classifier of this data set's classes",
    ):
        load_spec("digits", ["eval.metrics=['accuracy:inception']"])


def test_torchscript_network_is_named_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    here, other = script(tmp_path / "net.ts"), script(tmp_path / "other.ts", 2.0)
    there = tmp_path / "b" / "moved.ts"
    there.write_bytes(here.read_bytes())

    def of(file: Path, options: str = "?size=8"):
        return load_spec("digits", [f'eval.metrics=["fd:torchscript:{file}{options}"]'])

    sha256 = hashlib.sha256(here.read_bytes()).hexdigest()
    first = of(here)
    assert first.eval.metrics == (f"fd:torchscript@{sha256[:8]}?size=8",)
    assert str(tmp_path) not in canonical(first)
    assert first.eval.metrics == of(there).eval.metrics == of(here, f"?sha256={sha256}&size=8").eval.metrics
    assert first.eval.metrics not in (of(other).eval.metrics, of(here, "?size=16").eval.metrics)
    (tmp_path / "spec.toml").write_text(first.to_toml())
    assert load_spec(str(tmp_path / "spec.toml")) == first
    assert located(first.eval.metrics[0].removeprefix("fd:"), first.eval.weights) == (
        f"torchscript:{here}?size=8", None, sha256[:8],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"eval.metrics 'fd:torchscript:.*absent.ts.*': cannot read weights"):
        of(tmp_path / "absent.ts")
    with pytest.raises(UserError, match="is not the expected file"):
        of(here, "?sha256=0011")


def test_run_id_does_not_change_when_replicates_is_one() -> None:
    assert "replicates" not in canonical(load_spec("digits"))
    assert load_spec("digits", ["eval.replicates=1"]).legacy_id == load_spec("digits").legacy_id
    assert load_spec("digits", ["eval.replicates=3"]).legacy_id != load_spec("digits").legacy_id


@pytest.mark.parametrize(
    ("extractor", "encoder", "same"),
    [
        ("dinov2-s", DINO, True),
        (f"{DINO}.lvd142m", DINO, True),
        ("dinov2-s", f"cached:{DINO}.lvd142m", True),
        ("dinov2-b", DINO, False),
        ("local", "local:small", False),
        ("clip-vit-l-336", "open_clip:ViT-L-14-336.openai", True),
        ("open_clip:ViT-B-16.openai", "open_clip:ViT-B-16.laion2b", False),
        ("timm:vit_small_patch14_reg4_dinov2", DINO, False),
    ],
)
def test_is_same_network_recognizes_two_names(extractor: str, encoder: str, same: bool) -> None:
    assert is_same_network(extractor, encoder) is same


def test_check_impartial_rejects_an_encoder_as_the_only_metric() -> None:
    metrics = ("fd:dinov2-s", "fd:local")
    assert favoured(metrics, [DINO]) == ["fd:dinov2-s"]
    check_impartial(metrics, favoured(metrics, [DINO]), "here")
    with pytest.raises(
        UserError, match=r"here: 'fd:dinov2-s' .* computed by an encoder that a method aligns to"
    ):
        check_impartial(metrics[:1], favoured(metrics, [DINO]), "here")


@pytest.mark.parametrize(("second", "rejected"), [(["fd:dinov2-s", "fd:local"], True), (["fd:local"], False)])
def test_plan_checks_every_arm_against_every_encoder(
    tmp_path: Path, second: list[str], rejected: bool
) -> None:
    """flow has no encoder, but its only metric must not be computed by the encoder of repa."""
    arms = [{"name": "flow"}, {"name": "repa", "encoder": {"name": DINO}}]
    first = ["fd:dinov2-s"] if rejected else ["fd:dinov2-s", "fd:local"]
    table = {
        "name": "s",
        "base": "digits",
        "axes": {"seed": [0]},
        "zip": {"arm": {"method": arms, "eval.metrics": [first, second]}},
    }
    (tmp_path / "study.toml").write_text(tomli_w.dumps(table))
    study = load_study(str(tmp_path / "study.toml"))
    if rejected:
        with pytest.raises(UserError, match=r"study s: 'fd:dinov2-s' in eval.metrics, and every other"):
            make_plan(study)
    else:
        assert len(make_plan(study).runs) == 2
