"""The log of separate gradients: equal bits with it on and off, and the optimizer's norm.

It does not depend on micro-batches, ranks or restarts.
"""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from harness.assembly.build import method_of_spec
from harness.assembly.resolve import load_spec
from harness.costs.flops import count_reading, count_readings, count_spec
from harness.errors import UserError
from harness.records import checkpoint_files
from harness.records.record import DONE, TRAINING_PHASES, Record
from harness.records.tables import gradient_table
from harness.train.gradient_log import GradientReading, place_of
from tests.support.forked import in_world
from tests.support.modal import modal
from tests.support.runs import TINY, events, everything, tiny, trained
from tests.support.text_runs import tiny_text, use_captions

pytestmark = pytest.mark.usefixtures("quick_networks")
EVERY = "train.log_gradients_every=4"
SHORT = ("eval.every=12", "eval.samples=4", "train.keep_checkpoints=9")
# Without a projector, both gradients are all that the optimizer gets.
ENCODER = ("method.repa.encoder.name=random:small",)
SYNC = ("method.name=layersync", "method.coefficient=5", *SHORT)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tiny(*SYNC, EVERY), tmp_path_factory.mktemp("logged"))


def compared(record: Record) -> list[dict[str, float]]:
    """Return the numbers of all readings in flat tables."""
    frame = gradient_table([record])
    return frame.drop(columns=["run", "method", "seed"]).to_dict("records")


def test_run_with_the_log_has_the_id_and_every_bit_of_one_without(logged: Record, tmp_path: Path) -> None:
    plain = trained(tiny(*SYNC), tmp_path)
    assert plain.id == logged.id
    quiet, *files = json.loads(everything(plain))
    noisy, *other_files = json.loads(everything(logged))
    assert [event for event in noisy if event["kind"] != "gradients"] == quiet
    assert len(noisy) == len(quiet) + 3 and files == other_files


def test_both_gradients_add_up_to_the_norm_that_the_optimizer_clips(logged: Record) -> None:
    """|f + a|^2 = |f|^2 + |a|^2 + 2 |f| |a| cos, against the norm of the step's own backward pass."""
    steps = {event["step"]: event for event in logged.of("train")}
    readings = logged.of("gradients")
    assert [event["step"] for event in readings] == [4, 8, 12]
    for event in readings:
        f, a = event["norms"]["flow"], event["norms"]["auxiliary"]
        total = math.sqrt(f * f + a * a + 2 * f * a * event["cosine"])
        assert total == pytest.approx(steps[event["step"]]["grad_norm"], rel=1e-5)
        assert event["share"] == pytest.approx(a / (f + a))
        assert event["losses"]["loss"] == pytest.approx(steps[event["step"]]["loss"], rel=1e-6)
        assert event["losses"]["align"] == pytest.approx(steps[event["step"]]["losses"]["align"], rel=1e-6)


def test_share_of_reached_blocks_leaves_out_those_after_the_aligned_layer(logged: Record) -> None:
    """LayerSync's target has no gradient, so the later blocks and the final layer are not reached."""
    layer = logged.spec["method"]["student_layer"]
    for event in logged.of("gradients"):
        assert event["reached"]["blocks"] == layer
        assert event["share"] < event["reached"]["share"] < 1
    assert place_of("blocks.0.attn.qkv.weight", 4) == 1 and place_of("final_layer.linear.bias", 4) == 5
    assert place_of("beside_embedders.0.proj.weight", 4) == place_of("t_embedder.mlp.0.bias", 4) == 0


def test_cost_of_the_log_is_booked_outside_training(logged: Record) -> None:
    last = logged.of("train")[-1]
    assert last["seconds"]["gradients"] > 0 and "gradients" not in TRAINING_PHASES
    assert last["flops"] == 12 * count_spec(tiny(*SYNC)).step


def test_plain_flow_matching_has_norms_alone(tmp_path: Path) -> None:
    record = trained(tiny(*SHORT, EVERY, "train.steps=4", "train.precision=bfloat16"), tmp_path)
    (event,) = record.of("gradients")
    assert event["norms"] == {"flow": pytest.approx(record.of("train")[-1]["grad_norm"], rel=1e-5)}
    assert "share" not in event and "cosine" not in event and "reached" not in event
    assert list(event["features"]) == ["student 1", "student 3", "student 4"]
    # One pass forward and back, as in a step.
    assert event["reading_flops"] == count_spec(tiny()).per_step["student"]


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_relation_of_gradients_that_are_not_finite_is_undefined(place: int, value: float) -> None:
    """A NaN is no cosine of 1, and an infinite norm of the flow loss no share of 0."""
    products = torch.tensor([[4.0, 1.0], [1.0, 0.0], [0.5, 0.0]])
    products[place, 0] = value
    fields = GradientReading(products, torch.zeros(0), (), True, 0).fields()
    assert fields["share"] is fields["cosine"] is None
    assert fields["reached"] == {"blocks": 0, "share": None, "cosine": None}


@pytest.mark.slow
def test_flops_of_a_reading_lie_between_one_pass_and_two_of_a_step() -> None:
    spec = tiny("method.name=self_flow")
    step, read = count_spec(spec).per_step, count_reading(method_of_spec(spec)[0], spec, 1)
    both = step["student"] + step["teacher"]
    # The weights of the projector need no gradient.
    assert 1.8 * both < read < 2 * both


def test_reading_does_not_depend_on_micro_batches(logged: Record, tmp_path: Path) -> None:
    parts = trained(tiny(*SYNC, EVERY, "train.accumulate=2"), tmp_path)
    for found, known in zip(compared(parts), compared(logged), strict=True):
        assert found == pytest.approx(known, rel=1e-4, abs=1e-6)


def of_rank(out: Path) -> None:
    from harness.train.loop import train
    from harness.train.progress import Silent

    train(load_spec("digits", (*TINY, *SYNC, EVERY)), out, Silent())


def test_reading_of_two_ranks_is_that_of_the_full_batch(logged: Record, tmp_path: Path) -> None:
    in_world(2, partial(of_rank, tmp_path))
    two = Record(tmp_path / logged.id)
    assert two.environment[0]["devices"] == 2
    for found, known in zip(compared(two), compared(logged), strict=True):
        assert found == pytest.approx(known, rel=1e-4, abs=1e-6)


def test_killed_run_has_the_readings_of_an_unbroken_one(logged: Record, tmp_path: Path) -> None:
    run = tmp_path / logged.id
    shutil.copytree(logged.path, run)
    (run / DONE).unlink()
    for file in checkpoint_files.checkpoints(run / "checkpoints")[1:]:
        file.unlink()
    again = trained(tiny(*SYNC, EVERY), tmp_path)
    assert again.path == run and again.environment[-1]["after_step"] == 4
    assert events(again) == events(logged)


def test_log_of_a_sharded_run_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"train\.log_gradients_every = 4 does not support runtime\.shard = true"
    ):
        tiny(EVERY, "runtime.shard=true")


@pytest.mark.slow
def test_reading_after_the_end_of_alignment_has_the_flow_loss_alone(tmp_path: Path) -> None:
    words = ("method.name=self_flow", "method.schedule.until=5", "train.steps=8", *SHORT)
    first, second = trained(tiny(*words, EVERY), tmp_path).of("gradients")
    assert set(first["norms"]) == {"flow", "auxiliary"} and set(second["norms"]) == {"flow"}
    assert first["reading_flops"] > second["reading_flops"] > 0
    assert count_readings(tiny(*words, EVERY)) == first["reading_flops"] + second["reading_flops"]
    assert count_readings(tiny(*words)) == 0


@pytest.mark.slow
def test_reading_of_a_routed_step_costs_less_than_one_after_the_route() -> None:
    """TREAD has no weight, and a stack's end is that of its terms."""
    for name, end in (("tread", "method"), ("repa+tread", "method.tread")):
        words = (f"method.name={name}", f"{end}.schedule.until=5", *ENCODER[: name.count("+")])
        spec = tiny(*words, "train.steps=8", EVERY)
        method, encoders = method_of_spec(spec)
        routed, full = (count_reading(method, spec, step, encoders) for step in (5, 6))
        assert routed < full and count_readings(spec) == routed + full


@pytest.mark.slow
def test_further_final_layer_is_in_no_norm(tmp_path: Path) -> None:
    """The norm that the optimizer clips has it in addition."""
    assert place_of("final_layers.2.linear.weight", 4) is None
    words = ("method.name=internal_guidance", "method.layer=2", *SHORT, EVERY, "train.steps=4")
    record = trained(tiny(*words), tmp_path)
    (event,) = record.of("gradients")
    f, a = event["norms"]["flow"], event["norms"]["auxiliary"]
    clipped = record.of("train")[-1]["grad_norm"]
    assert 0 < math.sqrt(f * f + a * a + 2 * f * a * event["cosine"]) < 0.99 * clipped
    assert event["reached"]["blocks"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["video", "audio", "joint"])
@pytest.mark.parametrize("way", ["runtime.checkpoint_activations=true", "train.precision=bfloat16"])
def test_log_changes_no_bit_of_other_modalities(tmp_path: Path, modality: str, way: str) -> None:
    words = ("method.name=self_flow", way)
    plain = trained(modal(modality, *words), tmp_path / "plain")
    noisy = trained(modal(modality, *words, "train.log_gradients_every=2"), tmp_path / "noisy")
    assert len(noisy.of("gradients")) == 3
    kept = [event for event in events(noisy) if event["kind"] != "gradients"]
    assert kept == events(plain) and json.loads(everything(plain))[1:] == json.loads(everything(noisy))[1:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["self_flow", "attention_separation"])
def test_log_changes_no_bit_of_runs_on_text(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_captions(monkeypatch)
    words = (f"method.name={method}", "train.accumulate=2", *SHORT)
    plain = trained(tiny_text(*words), tmp_path / "plain")
    noisy = trained(tiny_text(*words, EVERY), tmp_path / "noisy")
    # The blocks of text and image before the aligned one, none after it.
    assert {event["reached"]["blocks"] for event in noisy.of("gradients")} == {1}
    assert json.loads(everything(plain))[1:] == json.loads(everything(noisy))[1:]
