"""Requirements on every objective in runs: trained weights, resuming, errors, knobs off, two processes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.assembly.build import backbone_config, build_backbone, sampling_rule
from harness.cli.run import run as run_command
from harness.data.open import open_dataset, split
from harness.encoders import local
from harness.encoders.local import RandomEncoder
from harness.errors import UserError
from harness.evaluation.held_out_loss import HeldOutLoss
from harness.records.flatten import flatten
from harness.records.record import DONE, Record
from harness.runtime.distributed import World
from harness.train.state import build_run
from methods.common.method import Method
from tests.methods.conftest import few_methods_fast
from tests.support.conformance_runs import ALIKE, name_of, words
from tests.support.forked import in_world
from tests.support.runs import TINY, everything, losses, part, tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")


@few_methods_fast
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


@few_methods_fast
def test_validation_loss_is_measured_or_refused_by_name(method: type[Method]) -> None:
    asked = (*words(method), 'eval.metrics=["loss:held_out"]', "eval.samples=3", "eval.batch_size=3")
    if tiny(*words(method)).method.needs().generates:
        with pytest.raises(
            UserError, match=rf"loss:held_out' does not support {re.escape(name_of(method))},"
        ):
            tiny(*asked)
        return
    spec = tiny(*asked)
    dataset, cpu = open_dataset(spec.data), torch.device("cpu")
    model = build_backbone(backbone_config(spec, dataset), spec.runtime)
    held_out, rule = split(dataset, spec.data.held_out).held_out, sampling_rule(spec, dataset)
    values = HeldOutLoss(spec.eval, dataset, held_out, None, World(0, 1, cpu), rule)(model)
    mean, *times = (value.mean for value in values.values())
    assert len(times) == 8 and mean > 0 and mean == pytest.approx(sum(times) / 8)


FIFTY = ("train.steps=50", "eval.every=50")


@pytest.fixture(scope="module")
def flow_of_fifty_steps(quick_networks: None, tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tiny(*FIFTY, "method.name=flow"), tmp_path_factory.mktemp("flow"))


@pytest.mark.slow
def test_run_equals_flow_for_fifty_steps_when_off(
    method: type[Method], flow_of_fifty_steps: Record, tmp_path: Path
) -> None:
    knobs = [f"method.{field}={value}" for field, value in flatten(method.Config.off).items()]
    run = trained(tiny(*FIFTY, f"method.name={name_of(method)}", *knobs), tmp_path)
    assert len(losses(run)) == 50 and losses(run) == losses(flow_of_fifty_steps)
    assert all(part(run, name) == part(flow_of_fifty_steps, name) for name in ("model", "ema"))


@pytest.mark.slow
def test_two_processes_equal_one(method: type[Method], tmp_path: Path) -> None:
    if other := ALIKE.get(name_of(method)):
        pytest.skip(f"as {other}")
    one = trained(tiny(*words(method)), tmp_path / "one")
    settings = [word for override in (*TINY, *words(method)) for word in ("--set", override)]
    command = ["digits", *settings, "--out", str(tmp_path / "two"), "--no-track", "--quiet"]
    in_world(2, lambda: run_command.main(command, standalone_mode=False))
    two = Record(tmp_path / "two" / one.id)
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
