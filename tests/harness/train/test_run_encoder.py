"""Runs as encoders: the features of their EMA network, their identity by content, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.backbone.kinds import network_of
from harness.backbone.network import Backbone
from harness.backbone.times import Times
from harness.costs.flops import count_spec
from harness.data.open import images, open_dataset
from harness.data.pin import pinned
from harness.encoders.base import Choice, check_weights, open_encoder
from harness.errors import UserError
from harness.flow.batch import Batch, Draw
from harness.records.record import DONE, Record
from harness.train.run_encoder import RunEncoder, pass_flops
from harness.train.trained_run import model_of_run
from tests.support.commands import flowrace
from tests.support.runs import tiny, trained

CPU = torch.device("cpu")
SHORT = ("train.steps=4", "eval.every=4", "eval.metrics=['loss:held_out']")
GRID = (4, 4)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tiny(*SHORT), tmp_path_factory.mktemp("first"))


def opened(choice: Choice, held_out: float = 0.5, **data: object) -> RunEncoder:
    dataset = open_dataset(tiny().data.model_copy(update=data))
    return open_encoder(choice, dataset, grid=GRID, held_out=held_out, device=CPU)  # pyright: ignore


def network(record: Record) -> Backbone:
    return model_of_run(record.path, tiny(*SHORT), None)[1]


def samples() -> torch.Tensor:
    pixels, _ = images(open_dataset(tiny().data), np.arange(3))
    return torch.from_numpy(pixels).float() / 127.5 - 1


@torch.no_grad()
def test_features_are_the_layers_output_without_a_label(first: Record) -> None:
    encoder, net, x = opened(Choice(f"run:{first.path}?layer=2")), network(first), samples()
    null = torch.full((3,), 10)
    expected = net(x, Times.per_sample(torch.zeros(3)), null, taps=(2,)).hidden[2]
    torch.testing.assert_close(encoder.features(x), expected)
    assert encoder.name == f"run:{first.path.name}?layer=2" and encoder.dim == 64
    noised = opened(Choice(f"run:{first.path}?layer=2&time=0.25"))
    times = Times.per_sample(torch.full((3,), 0.25))
    expected = net(0.75 * x + 0.25 * noised._noise, times, null, taps=(2,)).hidden[2]
    torch.testing.assert_close(noised.features(x), expected)


@torch.no_grad()
def test_given_tokens_of_a_noised_sample_stay_clean(first: Record) -> None:
    """The network of a run with `data.given=top_half` never saw noise in the upper half."""
    encoder, net, x = opened(Choice(f"run:{first.path}?layer=2&time=0.25")), network(first), samples()
    given = network_of(replace(net.config, given=(8,)))
    given.load_state_dict(net.state_dict())
    encoder._network = given.eval()
    t = torch.tensor([0.25])
    mixed = torch.cat([x[:, :, :4], (0.75 * x + 0.25 * encoder._noise)[:, :, 4:]], dim=2)
    expected = given(mixed, Times.per_sample(t.expand(3)), torch.full((3,), 10), taps=(2,)).hidden[2]
    torch.testing.assert_close(encoder.features(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_guided_features_are_those_of_the_noised_samples(first: Record, scale: float) -> None:
    encoder, net, x0 = opened(Choice(f"run:{first.path}?layer=3")), network(first), samples()
    label, t = torch.tensor([1, 7, 2]), torch.tensor([0.4, 0.6, 0.9])
    batch = Batch(np.arange(3), x0, torch.full((3,), 10), label)
    draw = Draw(torch.flip(x0, (0,)), Times.per_sample(t))
    found = encoder.guided_view(batch, draw, scale).tokens
    x = (1 - t).reshape(3, 1, 1, 1) * x0 + t.reshape(3, 1, 1, 1) * draw.noise
    of_label, of_null = (net(x, draw.times, y, taps=(3,)).hidden[3] for y in (label, batch.y))
    torch.testing.assert_close(found, of_null + scale * (of_label - of_null), atol=1e-4, rtol=1e-5)


def test_flops_of_a_further_layer_are_those_of_its_products(first: Record) -> None:
    config = network(first).config
    T, D = 16, 64
    block = 12 * D**2 * T + 2 * T**2 * D + 6 * D**2
    assert pass_flops(config, 3) - pass_flops(config, 2) == 2 * block


def test_spec_keeps_the_id_of_the_run_when_its_folder_moves(first: Record, tmp_path: Path) -> None:
    moved = tmp_path / first.path.name
    shutil.copytree(first.path, moved)
    names = [f"method.encoder.name=run:{path}?layer=2" for path in (first.path, moved)]
    specs = [pinned(tiny("method.name=repa", name)) for name in names]
    assert specs[0].id == specs[1].id and specs[0].method.encoder.name == f"run:{first.path.name}?layer=2"
    assert specs[1].method.encoder.weights == str(moved)
    assert specs[0].method.encoder.content == opened(Choice(f"run:{first.path}")).sha256
    assert tiny("method.name=repa", f"method.encoder.name=run:{first.path}?layer=3").id != specs[0].id


@pytest.mark.slow
def test_further_training_of_the_run_is_noticed(first: Record, tmp_path: Path) -> None:
    planned = pinned(tiny("method.name=repa", f"method.encoder.name=run:{first.path}"))
    shutil.copytree(first.path, tmp_path / first.path.name)
    longer = trained(tiny(*SHORT, "train.steps=8"), tmp_path)
    encoder = planned.method.encoder.model_copy(update={"weights": str(longer.path)})
    other = planned.model_copy(update={"method": planned.method.model_copy(update={"encoder": encoder})})
    with pytest.raises(UserError, match="holds other weights than this spec was planned with"):
        pinned(other)
    kept = opened(Choice(f"run:{longer.path}?step=4"))
    assert kept.sha256 == planned.method.encoder.content


def test_repa_trains_with_a_run_as_its_encoder(first: Record, tmp_path: Path) -> None:
    spec = pinned(tiny(*SHORT, "method.name=repa", f"method.encoder.name=run:{first.path}?layer=2"))
    record = trained(spec, tmp_path)
    (about,) = record.environment[0]["encoders"]
    assert about["sha256"] == spec.method.encoder.content and about["name"].startswith("run:")
    assert record.status == "done" and record.of("train")[-1]["losses"]["align"] < 1
    assert count_spec(spec).per_step["encoder"] == 8 * pass_flops(network(first).config, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?layer=5", "layer = 5, but the network of the run has layers 1 to 4"),
        ("?layer=0", "option 'layer' is unknown, repeated or out of range"),
        ("?depth=2", "option 'depth' is unknown"),
        ("?time=1", "option 'time' is unknown, repeated or out of range"),
        ("?step=3", "has no checkpoint at step 3"),
    ],
)
def test_impossible_options_are_rejected(first: Record, options: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(Choice(f"run:{first.path}{options}"))


def test_runs_that_do_not_fit_are_rejected(first: Record, tmp_path: Path) -> None:
    choice = Choice(f"run:{first.path}")
    with pytest.raises(
        UserError, match=r"with data.held_out = 0.5, so it saw samples that are held out here"
    ):
        opened(choice, held_out=0.6)
    dataset = open_dataset(tiny().data)
    about = {"fingerprint": "0123", "shape": dataset.shape, "classes": 10, "modality": "image"}
    with pytest.raises(
        UserError, match=r"trained on other data or latents .*fingerprint .*, these have 0123"
    ):
        RunEncoder(choice, SimpleNamespace(**about), grid=GRID, held_out=0, device=CPU)  # pyright: ignore
    about |= {"fingerprint": dataset.fingerprint, "classes": 7}
    with pytest.raises(
        UserError, match=r"is a network for other samples: its y_embedder.* has shape \(11, 64\)"
    ):
        RunEncoder(choice, SimpleNamespace(**about), grid=GRID, held_out=0, device=CPU)  # pyright: ignore
    with pytest.raises(UserError, match="has a grid of 4x4 tokens, but the backbone has 2x2"):
        open_encoder(choice, dataset, grid=(2, 2), held_out=0.5, device=CPU)
    for grid in ((2, 2), (4,), (2, 4, 4)):
        has = f"has a grid of 4x4 tokens, but the backbone has {'x'.join(map(str, grid))};"
        with pytest.raises(UserError, match=has):
            RunEncoder.architecture_of(choice, dataset, grid)
    with pytest.raises(
        UserError, match="stores features of pictures, but run: reads the samples of each step"
    ):
        open_encoder(Choice(f"cached:run:{first.path}"), dataset, grid=GRID, held_out=0.5, device=CPU)
    with pytest.raises(UserError, match="no such run directory"):
        check_weights(Choice(f"run:{tmp_path}/0123456789ab"))
    unfinished = tmp_path / first.path.name
    shutil.copytree(first.path, unfinished)
    (unfinished / DONE).unlink()
    with pytest.raises(UserError, match=r"is .*; finish the run, or name a step"):
        check_weights(Choice(f"run:{unfinished}"))
    other = tmp_path / "0123456789ab"
    unfinished.rename(other)
    with pytest.raises(UserError, match=r"names the run .*, but its folder is"):
        check_weights(Choice(f"run:{first.path.name}", weights=str(other)))
    with pytest.raises(UserError, match="does not match the run id"):
        check_weights(Choice(f"run:{other}"))


@pytest.mark.slow
def test_run_on_latents_teaches_and_is_probed_on_latents(tmp_path: Path) -> None:
    """Its encoder reads the latents themselves, so no pictures are needed."""
    assert (
        flowrace("data", "encode", "digits", "--codec", "identity", "--out", str(tmp_path / "l")).exit_code
        == 0
    )
    words = (*SHORT, "data.name=latents", f"data.root={tmp_path / 'l'}")
    teacher = trained(pinned(tiny(*words)), tmp_path)
    spec = pinned(tiny(*words, "method.name=repa", f"method.encoder.name=run:{teacher.path}?layer=2"))
    taught = trained(spec, tmp_path)
    assert taught.status == "done"
    probed = flowrace("probe", str(taught.path), "--samples", "60", "--json")
    assert probed.exit_code == 0 and json.loads(probed.stdout)["rows"][0]["name"].startswith("run:")
    with pytest.raises(UserError, match="trained on other data or latents"):
        opened(Choice(f"run:{teacher.path}"))
