"""`eval.reference`: saved statistics as the real side of a race, and what they cannot serve."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.assembly.resolve import load_spec
from harness.backbone.sit import Prediction
from harness.config.evaluation_spec import EvalSpec
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.metric_names import metric_spec
from harness.evaluation.reference import RaceReference, race_reference
from metrics.files.hashing import sha256_of
from sweeps.cli.evaluate import evaluate as command
from tests.harness.evaluation.samples.networks import save_means
from tests.support.runs import tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")

CPU = torch.device("cpu")


class Painter(torch.nn.Module):
    def forward(self, x, times, y):
        return Prediction(x * 0.5 + y[:, None, None, None] * 0.01, {})


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, and the training split of the digits as samples and as saved statistics."""
    folder = tmp_path_factory.mktemp("reference")
    save_means(folder)
    dataset = open_dataset(tiny().data)
    x = images(dataset, split(dataset, 0.2).train)[0]
    np.savez(folder / "train.npz", arr_0=x.transpose(0, 2, 3, 1))
    words = ["--extractor", f"torchscript:{folder / 'means.ts'}"]
    saved = [str(folder / "train.npz"), *words, "--save-stats", str(folder / "train.safetensors")]
    assert CliRunner().invoke(command, saved, catch_exceptions=False).exit_code == 0
    return folder


def spec(here: Path, *metrics: str, reference: str = "") -> EvalSpec:
    names = ", ".join(f'"{name}:torchscript:{here / "means.ts"}"' for name in metrics)
    settings = (f"eval.metrics=[{names}]", f"eval.reference={reference}", "eval.samples=200")
    return load_spec("digits", ("eval.sampler=euler", "eval.sampler_steps=1", *settings)).eval


def evaluator(chosen: EvalSpec) -> Evaluator:
    dataset = open_dataset(tiny().data)
    sides = split(dataset, 0.2)
    return Evaluator(chosen, dataset, sides.train, CPU, sides.held_out)


def test_race_against_saved_statistics_equals_the_race_against_their_samples(here: Path) -> None:
    file = here / "train.safetensors"
    direct, saved = evaluator(spec(here, "fd")), evaluator(spec(here, "fd", reference=str(file)))
    first, second = direct(Painter()), saved(Painter())
    assert first is not None and second is not None
    (a,), (b,) = first.metrics.values(), second.metrics.values()
    assert b.mean == pytest.approx(a.mean, rel=1e-9)
    (floor,), (other) = saved.noise_floor.values(), next(iter(direct.noise_floor.values()))
    assert set(floor) == {"held_out"}
    assert floor["held_out"]["mean"] == pytest.approx(other["held_out"]["mean"], rel=1e-9)


def test_protocol_names_the_reference_by_content(here: Path, tmp_path: Path) -> None:
    file, moved = here / "train.safetensors", tmp_path / "moved.safetensors"
    moved.write_bytes(file.read_bytes())
    found = [evaluator(spec(here, "fd", reference=str(place))) for place in (file, moved)]
    assert found[0].protocol == found[1].protocol != evaluator(spec(here, "fd")).protocol
    described = found[0].described([])
    assert described["protocol"]["reference"] == sha256_of(file) == described["reference"]["sha256"]
    assert (described["reference"]["file"], described["reference"]["format"]) == (str(file), "flowrace")
    assert (
        described["protocol"]["n_real"]
        == described["reference"]["n"]
        == np.load(here / "train.npz")["arr_0"].shape[0]
    )


def test_reference_does_not_change_the_run_id(here: Path) -> None:
    assert tiny(f"eval.reference={here / 'train.safetensors'}").id == tiny().id


def test_run_records_its_reference(here: Path, tmp_path: Path) -> None:
    file = here / "train.safetensors"
    names = f'eval.metrics=["fd:torchscript:{here / "means.ts"}"]'
    record = trained(tiny(names, f"eval.reference={file}", "train.steps=2", "eval.every=2"), tmp_path)
    assert record.environment[0]["evaluation"]["reference"]["sha256"] == sha256_of(file)
    assert record.of("eval")[-1]["metrics"]


def test_metrics_that_statistics_cannot_serve_are_refused_in_one_sentence(here: Path) -> None:
    file = here / "train.safetensors"
    with pytest.raises(UserError) as refused:
        evaluator(spec(here, "fd", "cmmd", "precision", reference=str(file)))
    message = str(refused.value)
    assert "cannot serve 'cmmd:torchscript@" in message and "(needs features of single samples)" in message
    assert "it can serve fd:torchscript@" in message and "clear eval.reference" in message
    other = EvalSpec(samples=60, metrics=("fd:local",), reference=str(file))
    with pytest.raises(UserError, match=r"'fd:local' \(extractor of the statistics is .*it can serve none"):
        evaluator(other)


def network(name: str = "inception", **fields: Any) -> SimpleNamespace:
    return SimpleNamespace(name=name, sha256="a", preprocessing="p", **fields)


def refusals(reference: RaceReference, extract: Any, *names: str, frames: int | None = None) -> str:
    metrics = [metric_spec(name) for name in names]
    try:
        reference.check(metrics, {metric.extractor: extract for metric in metrics}, frames)
    except UserError as error:
        return str(error)
    return ""


def test_adm_batch_serves_the_original_inception_only(tmp_path: Path) -> None:
    file, plain = tmp_path / "adm.npz", tmp_path / "no_spatial.npz"
    np.savez(file, mu=np.zeros(8), sigma=np.eye(8), mu_s=np.zeros(4), sigma_s=np.eye(4))
    np.savez(plain, mu=np.zeros(8), sigma=np.eye(8))
    reference = race_reference(str(file))
    assert reference is not None
    assert refusals(reference, network(), "fid", "sfid", "is", "fid_infinity") == ""
    assert "'kid:inception' (needs features of single samples); it can serve fid" in refusals(
        reference, network(), "fid", "kid:inception"
    )
    assert "those of the original Inception" in refusals(reference, network("inception@1234"), "fd:inception")
    without = race_reference(str(plain))
    assert without is not None
    assert "'sfid' (no statistics of spatial features)" in refusals(without, network(), "sfid")


@pytest.mark.parametrize(
    ("key", "value"), [("extractor", "b"), ("weights_sha256", "b"), ("preprocessing", "b"), ("frames", "8")]
)
def test_statistics_of_another_network_are_refused_with_the_difference(
    here: Path, key: str, value: str
) -> None:
    reference = race_reference(str(here / "train.safetensors"))
    assert reference is not None
    meta = {"extractor": "n", "weights_sha256": "a", "preprocessing": "p", "frames": "16", key: value}
    changed = RaceReference(reference.file, reference.sha256, reference.statistics._replace(meta=meta))
    message = refusals(changed, network("n"), "fd:local", frames=16)
    assert f"'fd:local' ({key} of the statistics is {value}, not " in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.safetensors", "no such file; expected a file of flowrace eval --save-stats"),
        ("train.npz", "holds no statistics; create them with flowrace eval SAMPLES"),
        ("cut.safetensors", "truncated or altered"),
    ],
)
def test_file_that_is_no_reference_is_refused(here: Path, name: str, message: str) -> None:
    (here / "cut.safetensors").write_bytes((here / "train.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match=message):
        evaluator(EvalSpec(samples=60, metrics=("fd:local",), reference=str(here / name)))
