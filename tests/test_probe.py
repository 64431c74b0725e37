"""The probe of a run: what it feeds the network, what it says of its layers, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.backbone.times import Times
from harness.data.base import images, open_dataset, split
from harness.draws import Streams
from harness.errors import UserError
from harness.probe import layers
from harness.probe_command import probe
from harness.run import load_ema
from tests.runs import tiny, trained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = tiny("method.name=repa", "method.encoder.name=random:tiny", "train.steps=4", "eval.every=4")
    return trained(spec, tmp_path_factory.mktemp("runs")).path


def asked(run: Path, *words: str) -> dict:
    result = CliRunner().invoke(probe, [str(run), "--json", *words], catch_exceptions=False)
    return json.loads(result.output)


def pooled(run: Path, index: np.ndarray, time: float) -> tuple[list[np.ndarray], np.ndarray]:
    """The mean token of every block, caught by hooks in a full pass on noised images without labels."""
    spec = tiny("method.name=repa", "method.encoder.name=random:tiny", "train.steps=4", "eval.every=4")
    dataset = open_dataset(spec.data)
    model = load_ema(next((run / "checkpoints").glob("*")), spec, dataset, CPU)
    caught: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: caught.append(out[0].mean(1)))
    pixels, labels = images(dataset, index)
    x0 = torch.from_numpy(pixels) / 127.5 - 1
    noise = Streams(0).normal("probe/noise", index, (1, 8, 8))
    with torch.no_grad():
        model(
            (1 - time) * x0 + time * noise,
            Times.per_sample(torch.full((len(index),), time)),
            torch.full((len(index),), 10),
        )
    return [h.numpy() for h in caught], labels


def test_a_layers_accuracy_is_sklearns(run: Path) -> None:
    found = asked(run, "--time", "0.5", "--samples", "150")
    sides = split(open_dataset(tiny().data), 0.5)
    train, held_out = (
        side[Streams(0).permutation(f"probe/{name}", 0, len(side))[:150]]
        for name, side in (("train", sides.train), ("held_out", sides.held_out))
    )
    known, y = pooled(run, train, 0.5)
    test, truth = pooled(run, held_out, 0.5)
    rows = found["rows"][1:]
    assert [row["name"] for row in rows] == [f"layer {n}" for n in range(1, len(known) + 1)]
    for row, x, held in zip(rows, known, test, strict=True):
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1.0)).fit(x.astype(float), y)
        assert row["accuracy"]["mean"] == pytest.approx(model.score(held.astype(float), truth), abs=0.01)
        assert row["accuracy"]["low"] < row["accuracy"]["mean"] < row["accuracy"]["high"]


def test_the_encoder_agrees_with_itself_and_layers_less(run: Path) -> None:
    found = asked(run, "--samples", "100")
    own, *rest = found["rows"]
    assert (found["encoder"], own["name"], found["train"], found["held_out"]) == (
        "random:tiny",
        "random:tiny",
        100,
        100,
    )
    assert own["cka"]["mean"] == pytest.approx(1) and own["cknna"]["mean"] == pytest.approx(1, abs=1e-3)
    assert all(0 < row["cka"]["mean"] < 0.999 for row in rest)
    assert all(
        row[name]["n"] == 100 for row in found["rows"] for name in ("accuracy", "cka", "local_distant")
    )


def test_same_answer_twice_and_nothing_changes(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    first = asked(run, "--encoder", "cached:random:small", "--samples", "50")
    assert first["rows"][0]["name"] == "cached:random:small"
    assert asked(run, "--encoder", "cached:random:small", "--samples", "50") == first
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_clean_images_have_no_noise(run: Path) -> None:
    """At time 0 the tokens do not depend on which sample an image claims to be."""
    dataset = open_dataset(tiny().data)
    model = load_ema(next((run / "checkpoints").glob("*")), tiny(), dataset, CPU)
    x0 = torch.from_numpy(images(dataset, np.arange(4))[0]) / 127.5 - 1
    for time, equal in ((0.0, True), (0.3, False)):
        here, there = (layers(model, time, CPU)(np.arange(4) + k, x0)["layer 1"] for k in (0, 7))
        assert torch.equal(here, there) == equal


def test_table_names_every_layer(run: Path) -> None:
    result = CliRunner().invoke(
        probe, [str(run), "--samples", "40"], catch_exceptions=False, env={"COLUMNS": "140"}
    )
    for word in ("random:tiny", "layer 1", "CKNNA", "decay", "40 held out"):
        assert word in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "x.safetensors"], "whose weights"),
        (["--encoder", "randon:tiny"], "Did you mean 'random'"),
        (["--step", "3"], "no checkpoint of step 3"),
        (["--set", "train.steps=9"], "can only be given"),
    ],
)
def test_mistakes(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        asked(run, *words)


def test_a_run_that_holds_nothing_out(tmp_path: Path) -> None:
    spec = tiny("data.held_out=0.0", "train.steps=1", "train.checkpoint_every=1", "eval.every=1")
    with pytest.raises(UserError, match="leaves no image to measure"):
        asked(trained(spec, tmp_path).path)
