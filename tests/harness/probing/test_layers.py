"""Layer probe of a run: the network's inputs, the values of its layers, and errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.backbone.times import Times
from harness.cli.probe import chosen, probe
from harness.data.open import images, open_dataset, split
from harness.encoders.base import Choice
from harness.errors import UserError
from harness.probing.layers import gather, layers
from harness.probing.linear_probe import Labelled, repa_probe
from harness.runtime.random_streams import Streams
from harness.train.trained_run import load_ema
from tests.support.runs import tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = tiny("method.name=repa", "method.encoder.name=random:tiny", "train.steps=4", "eval.every=4")
    return trained(spec, tmp_path_factory.mktemp("runs")).path


def probed(run: Path, *words: str) -> dict:
    result = CliRunner().invoke(probe, [str(run), "--json", *words], catch_exceptions=False)
    return json.loads(result.output)


def pooled(run: Path, index: np.ndarray, time: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the mean token of every block, from hooks in a pass on noised images without labels."""
    spec = tiny("method.name=repa", "method.encoder.name=random:tiny", "train.steps=4", "eval.every=4")
    dataset = open_dataset(spec.data)
    model = load_ema(next((run / "checkpoints").glob("*")), spec, dataset, CPU)
    captured: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: captured.append(out[0].mean(1)))
    pixels, labels = images(dataset, index)
    x0 = torch.from_numpy(pixels) / 127.5 - 1
    noise = Streams(0).normal("probe/noise", index, (1, 8, 8))
    with torch.no_grad():
        model(
            (1 - time) * x0 + time * noise,
            Times.per_sample(torch.full((len(index),), time)),
            torch.full((len(index),), 10),
        )
    return [h.numpy() for h in captured], labels


@pytest.mark.parametrize("classifier", ["ridge", "repa"])
def test_accuracy_of_layers_is_that_of_the_classifier(run: Path, classifier: str) -> None:
    """On features from hooks: for ridge by scikit-learn, for REPA by `repa_probe`, which is tested itself."""
    found = probed(run, "--time", "0.5", "--samples", "150", "--probe", classifier)
    sides = split(open_dataset(tiny().data), 0.5)
    train, held_out = (
        side[Streams(0).permutation(f"probe/{name}", 0, len(side))[:150]]
        for name, side in (("train", sides.train), ("held_out", sides.held_out))
    )
    known, y = pooled(run, train, 0.5)
    test, truth = pooled(run, held_out, 0.5)
    rows = found["rows"][1:]
    assert found["probe"] == classifier
    assert [row["name"] for row in rows] == [f"layer {n}" for n in range(1, len(known) + 1)]
    for row, x, held in zip(rows, known, test, strict=True):
        if classifier == "ridge":
            model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1.0)).fit(x.astype(float), y)
            expected = model.score(held.astype(float), truth)
        else:
            parts = (Labelled(*map(torch.from_numpy, part)) for part in ((x, y), (held, truth)))
            expected = repa_probe(*parts, 10).mean
        assert row["accuracy"]["mean"] == pytest.approx(expected, abs=0.01)
        assert row["accuracy"]["low"] < row["accuracy"]["mean"] < row["accuracy"]["high"]


def test_agreement_is_one_for_the_encoder_and_less_for_layers(run: Path) -> None:
    found = probed(run, "--samples", "100")
    encoder, *rest = found["rows"]
    assert (found["encoder"], encoder["name"], found["train"], found["held_out"]) == (
        "random:tiny",
        "random:tiny",
        100,
        100,
    )
    assert encoder["cka"]["mean"] == pytest.approx(1) and encoder["cknna"]["mean"] == pytest.approx(
        1, abs=1e-3
    )
    assert all(0 < row["cka"]["mean"] < 0.999 for row in rest)
    assert all(
        row[name]["n"] == 100 for row in found["rows"] for name in ("accuracy", "cka", "local_distant")
    )


def test_probe_is_repeatable_and_leaves_the_run_unchanged(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    first = probed(run, "--encoder", "cached:random:small", "--samples", "50")
    assert first["rows"][0]["name"] == "cached:random:small"
    assert probed(run, "--encoder", "cached:random:small", "--samples", "50") == first
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_tokens_do_not_depend_on_noise_at_time_zero(run: Path) -> None:
    """Noise is drawn by index, so at time 0 the tokens do not depend on the index."""
    dataset = open_dataset(tiny().data)
    model = load_ema(next((run / "checkpoints").glob("*")), tiny(), dataset, CPU)
    x0 = torch.from_numpy(images(dataset, np.arange(4))[0]) / 127.5 - 1
    for time, equal in ((0.0, True), (0.3, False)):
        first, second = (layers(model, time, CPU)(np.arange(4) + k, x0)["layer 1"] for k in (0, 7))
        assert torch.equal(first, second) == equal


def test_text_output_names_every_layer(run: Path) -> None:
    result = CliRunner().invoke(probe, [str(run), "--samples", "40"], catch_exceptions=False)
    for word in ("random:tiny", "layer 1", "CKNNA", "decay", "40 held out"):
        assert word in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "x.safetensors"], "random:tiny' takes no weights file; remove --weights"),
        (["--encoder", "timm:vit_tiny_patch16_224", "--weights", "x.st"], "--weights x.st: no such file"),
        (
            ["--encoder", "local:tiny", "--weights", "x.st"],
            "local:tiny' takes no weights file; remove --weights",
        ),
        (["--encoder", "randon:tiny"], "Did you mean 'random'"),
        (["--step", "3"], "no checkpoint at step 3"),
        (["--set", "train.steps=9"], "can be changed for an existing run"),
    ],
)
def test_invalid_options_are_rejected(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        probed(run, *words)


@pytest.mark.parametrize(
    ("encoder", "repository", "file"),
    [
        (
            "timm:vit_small_patch14_dinov2.lvd142m",
            "timm/vit_small_patch14_dinov2.lvd142m",
            "model.safetensors",
        ),
        ("open_clip:ViT-B-16.openai", "timm/vit_base_patch16_clip_224.openai", "open_clip_model.safetensors"),
    ],
)
def test_weights_are_downloaded_only_with_the_download_option(
    run: Path, monkeypatch: pytest.MonkeyPatch, encoder: str, repository: str, file: str
) -> None:
    """Without weights, the error names the file and the options of this command."""
    requests = []

    def hub(*what: str, local_files_only: bool) -> str:
        requests.append((*what, local_files_only))
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    place = f"download https://huggingface.co/{repository}/resolve/main/{file} and set --weights to that file"
    with pytest.raises(UserError, match=re.escape(f"{place}, or give --download") + "$"):
        probed(run, "--encoder", encoder)
    with pytest.raises(UserError, match=r"no connection.*" + re.escape(place) + "$"):
        probed(run, "--encoder", encoder, "--download")
    assert requests == [(repository, file, True), (repository, file, False)]


def test_chosen_encoder_is_the_runs_or_that_of_the_options() -> None:
    of_run = Choice("timm:a", "own.st", "ff", False)
    assert chosen(of_run, None, "", False) == chosen(of_run, "timm:a", "", False) == of_run
    assert chosen(of_run, None, "moved.st", True) == Choice("timm:a", "moved.st", "ff", True)
    assert chosen(of_run, "timm:b", "b.st", True) == Choice("timm:b", "b.st", "", True)
    assert chosen(None, "timm:b", "", False) == Choice("timm:b")
    assert chosen(None, None, "", False) is None
    for weights, download, words in (("x.st", False, "--weights x.st"), ("", True, "--download")):
        with pytest.raises(UserError, match=f"{words} requires --encoder family:model"):
            chosen(None, None, weights, download)


def test_network_with_extra_token_is_probed_without_it(tmp_path: Path) -> None:
    record = trained(
        tiny("method.name=reg", "method.encoder.name=random:tiny", "train.steps=1", "eval.every=1"), tmp_path
    )
    found = probed(record.path, "--samples", "40")
    assert [row["name"] for row in found["rows"]][:2] == ["random:tiny", "layer 1"]
    assert all(row["local_distant"]["n"] == 40 for row in found["rows"])


def test_layer_is_named_when_its_features_are_not_finite(run: Path) -> None:
    dataset = open_dataset(tiny().data)
    broken = lambda index, x0: {"layer 7": torch.full((len(index), 16, 4), torch.nan)}  # noqa: E731
    with pytest.raises(UserError, match="layer 7 cannot be measured: features are not finite"):
        gather([broken], dataset, np.arange(5), (4, 4), CPU)
    assert gather([broken], dataset, np.arange(5), None, CPU)["layer 7"].spatial_decay.shape == (0,)


def test_probe_is_rejected_when_no_images_are_held_out(tmp_path: Path) -> None:
    spec = tiny("data.held_out=0.0", "train.steps=1", "train.checkpoint_every=1", "eval.every=1")
    with pytest.raises(UserError, match="leaves no image to measure"):
        probed(trained(spec, tmp_path).path)
