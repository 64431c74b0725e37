"""Runs whose samples have given tokens: the first frame of a video, or the upper half of an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.assembly.build import backbone_config
from harness.assembly.given import given_tokens
from harness.assembly.resolve import load_spec
from harness.backbone.initialize import initialize
from harness.backbone.kinds import network_of
from harness.backbone.sit import SiTConfig
from harness.backbone.sizes import Size
from harness.config.data_spec import DataSpec
from harness.data.open import from_pixels, images, open_dataset, split
from harness.errors import UserError
from harness.evaluation.conditions import conditions_of
from harness.evaluation.held_out_loss import HeldOutLoss
from harness.records.record import Record
from harness.runtime.distributed import World
from harness.runtime.random_streams import Streams
from harness.train.trained_run import drawing_of_run
from tests.support.runs import TINY, trained

EVALUATED = (
    *TINY, "backbone.patch=4", "train.steps=3", "eval.every=3", 'eval.metrics=["loss:held_out"]',
    "eval.samples=4", "eval.labels=balanced", "eval.grid=4",
)  # fmt: skip
SPECS = {
    "digits": ("data.given=top_half",),
    "moving-digits": ("data.frames=3", "data.given=first_frame", "backbone.patch_time=1"),
}
GIVEN = {"digits": np.s_[:, :, :4], "moving_digits": np.s_[:, :, :1]}
GENERATED = {"digits": np.s_[:, :, 4:], "moving_digits": np.s_[:, :, 1:]}


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Record:
    spec = load_spec(request.param, (*EVALUATED, *SPECS[request.param]))
    return trained(spec, tmp_path_factory.mktemp("given"))


@pytest.mark.slow
@pytest.mark.parametrize("run", SPECS, indirect=True)
def test_samples_have_the_given_tokens_of_held_out_samples(run: Record) -> None:
    spec = load_spec(str(run.path))
    given, generated = GIVEN[spec.data.name], GENERATED[spec.data.name]
    drawing = drawing_of_run(run.path, spec, None, 4, (), torch.device("cpu"))
    drawn = torch.cat(list(drawing.batches())).numpy()
    dataset = open_dataset(spec.data)
    held_out = split(dataset, spec.data.held_out).held_out
    expected, labels = images(dataset, held_out[:4])
    assert np.array_equal(drawn[given], expected[given])
    assert not np.array_equal(drawn[generated], expected[generated])
    assert drawing.conditions.labels(np.arange(4)).tolist() == labels.tolist()
    of_class = drawing_of_run(run.path, spec, None, 3, (7,), torch.device("cpu"))
    assert of_class.conditions.labels(np.arange(3)).tolist() == [7, 7, 7]
    sides = [about["protocol"]["given"]["side"] for about in run.protocols.values()]
    assert sides == ["held out"]


def test_conditions_are_labels_and_given_samples_of_the_held_out_side() -> None:
    spec = load_spec("digits", (*EVALUATED, *SPECS["digits"]))
    dataset, index = open_dataset(spec.data), np.arange(5)
    sides = split(dataset, spec.data.held_out)
    found = conditions_of(spec.eval, dataset.classes, None, sides.held_out, sides.train, dataset)
    expected, labels = images(dataset, sides.held_out[:5])
    assert found.given is not None
    assert torch.equal(found.given(index), from_pixels(expected))
    assert found.labels(index).tolist() == labels.tolist()


def test_held_out_loss_is_the_mean_over_generated_values() -> None:
    """The official initial velocity is 0, so the loss at any time is the mean square of the target."""
    spec = load_spec("digits", (*EVALUATED, *SPECS["digits"]))
    dataset = open_dataset(spec.data)
    places = split(dataset, spec.data.held_out).held_out[:3]
    config = backbone_config(spec, dataset)
    net = network_of(config)
    initialize(net, Streams(0))
    loss = HeldOutLoss(spec.eval, dataset, places, None, World(0, 1, torch.device("cpu")))
    noise = Streams(spec.eval.seed).normal("held_out_noise", places, config.shape)
    target = noise - from_pixels(images(dataset, places)[0])
    expected = target[GENERATED["digits"]].square().mean().item()
    assert loss(net)["loss:held_out"].mean == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("data.given=first_frame",),
            "first_frame needs video or joint data, and these are image",
        ),
        (("data.given=top_half", "method.name=reg"), "reg does not support given tokens"),
        (
            ("data.given=top_half", "method.name=attention_separation"),
            "attention_separation does not",
        ),
        (("data.given=half",), "data.given"),
        (("data.given_noise=0.2",), "none is given; set data.given"),
        (("data.given=top_half", "data.given_noise=2"), "data.given_noise = 2"),
    ],
)
def test_given_tokens_that_a_run_cannot_have_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_spec("digits", (*TINY, *overrides))


def test_run_without_given_tokens_keeps_its_id() -> None:
    assert load_spec("digits", TINY).id == load_spec("digits", (*TINY, "data.given=")).id
    given, clean = (*TINY, "data.given=top_half"), "data.given_noise=0"
    assert load_spec("digits", TINY).id != load_spec("digits", given).id
    assert load_spec("digits", given).id == load_spec("digits", (*given, clean)).id
    assert load_spec("digits", given).id != load_spec("digits", (*given, "data.given_noise=0.2")).id


@pytest.mark.parametrize(
    ("frames", "patch_time", "message"), [(4, 2, "a token has 2 frames"), (1, 1, "a clip has one frame")]
)
def test_first_frame_without_its_own_tokens_is_refused(frames: int, patch_time: int, message: str) -> None:
    config = SiTConfig(Size(1, 16, 1), 4, (1, frames, 8, 8), 3, patch_time=patch_time)
    with pytest.raises(UserError, match=message):
        given_tokens(DataSpec(given="first_frame"), config, "video")
