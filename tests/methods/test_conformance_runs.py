"""Requirements on every objective in runs: trained weights, resuming, errors, knobs off, two processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.open import open_dataset, split
from harness.encoders import local
from harness.encoders.local import RandomEncoder
from harness.errors import UserError
from harness.records.flatten import flatten
from harness.records.record import DONE, Record
from harness.train.state import build_run
from methods.common.method import Method
from tests.methods.conftest import few_methods_fast
from tests.support.conformance_runs import ALIKE, name_of, words
from tests.support.runs import TINY, everything, losses, part, tiny, torchrun, trained

pytestmark = pytest.mark.usefixtures("quick_networks")


def test_optimizer_has_only_student_and_method(method: type[Method]) -> None:
    """In a run built by the trainer, encoder features have no gradient, and neither have the teacher's
    weights."""
    spec = tiny(*words(method))
    dataset = open_dataset(spec.data)
    run = build_run(spec, dataset, split(dataset, spec.data.held_out), torch.device("cpu"))
    optimized = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in (*run.model.parameters(), *run.method.parameters())}
    assert not any(p.requires_grad for p in run.ema.parameters())
    needs, images = spec.method.needs(), torch.zeros(2, *dataset.shape, requires_grad=True)
    assert len(run.encoders) == len(needs.encoders)
    for encoder in run.encoders:
        view = encoder.view(images, summary=True, attention=needs.attention)
        assert not any(t.requires_grad for t in view if t is not None)


@few_methods_fast
def test_resumed_run_equals_an_unbroken_one(method: type[Method], tmp_path: Path) -> None:
    """Promise 4: resumed from the checkpoint of step 3 of 6, a run ends with the same bits."""
    spec = tiny("train.steps=6", "train.checkpoint_every=3", "train.keep_checkpoints=9", *words(method))
    unbroken = trained(spec, tmp_path / "a")
    shutil.copytree(unbroken.path, tmp_path / "b" / spec.id)
    (tmp_path / "b" / spec.id / DONE).unlink()
    (tmp_path / "b" / spec.id / "checkpoints" / "step-00000006.safetensors").unlink()
    assert everything(trained(spec, tmp_path / "b")) == everything(unbroken)


def test_spec_rejects_layers_that_the_backbone_lacks(method: type[Method]) -> None:
    for field in (name for name in method.Config.model_fields if name.endswith("layer")):
        with pytest.raises(UserError, match=f"method.{field} = 5: backbone pico has layers 1 to 4"):
            tiny(*words(method), f"method.{field}=5")


def test_spec_rejects_groups_of_one(method: type[Method]) -> None:
    fields = method.Config.model_fields
    if "group" in fields:
        with pytest.raises(UserError, match=r"method: group = 1: .*greater than or equal to 2"):
            tiny(f"method.name={name_of(method)}", "method.group=1")
    if "separate" in fields:
        with pytest.raises(UserError, match=r"method.separate = true: with mask_ratio = 0 .* one group"):
            tiny(f"method.name={name_of(method)}", "method.mask_ratio=0")


def test_encoder_with_another_grid_is_rejected(method: type[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    class Coarse(RandomEncoder):
        def __init__(self, *given: Any, grid: tuple[int, int], **settings: Any) -> None:
            super().__init__(*given, grid=(2, 2), **settings)

    spec = tiny(*words(method))
    if not spec.method.needs().encoders:
        return
    monkeypatch.setattr(local, "RandomEncoder", Coarse)
    dataset = open_dataset(spec.data)
    with pytest.raises(
        UserError, match=r"has a grid of 2x2 tokens, but the backbone has 4x4; choose another encoder"
    ):
        build_run(spec, dataset, split(dataset, spec.data.held_out), torch.device("cpu"))


@pytest.mark.slow
def test_run_equals_flow_for_fifty_steps_when_off(method: type[Method], tmp_path: Path) -> None:
    knobs = [f"method.{field}={value}" for field, value in flatten(method.Config.off).items()]
    runs = [
        trained(tiny("train.steps=50", "eval.every=50", *words), tmp_path)
        for words in (["method.name=flow"], [f"method.name={name_of(method)}", *knobs])
    ]
    assert len(losses(runs[0])) == 50 and losses(runs[0]) == losses(runs[1])
    assert all(part(runs[0], name) == part(runs[1], name) for name in ("model", "ema"))


@pytest.mark.slow
def test_two_processes_equal_one(method: type[Method], tmp_path: Path) -> None:
    if other := ALIKE.get(name_of(method)):
        pytest.skip(f"as {other}")
    one = trained(tiny(*words(method)), tmp_path / "one")
    result = torchrun("digits", (*TINY, *words(method)), tmp_path / "two")
    assert result.returncode == 0, result.stderr
    two = Record(tmp_path / "two" / one.id)
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
