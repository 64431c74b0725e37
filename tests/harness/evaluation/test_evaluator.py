"""Evaluation of a run: fixed latents and labels, independent of the batch size; and its commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy import linalg

from harness.assembly.resolve import load_spec
from harness.backbone.sit import Prediction
from harness.cli.sample import sample as sample_command
from harness.config.evaluation_spec import EvalSpec
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.extractors import open_extractor
from harness.evaluation.protocol import digest, protocol
from harness.evaluation.sample_grid import image_grid
from harness.flow.sampling import sample_labels
from harness.records import checkpoint_files
from harness.records.record import Record
from harness.runtime.random_streams import Streams
from harness.train.trained_run import load_ema
from sweeps.cli.evaluate import evaluate as eval_command
from tests.support.runs import tiny, trained
from tests.support.sampling import draw_samples

pytestmark = pytest.mark.usefixtures("quick_networks")

CPU = torch.device("cpu")
SPEC = EvalSpec(samples=30, sampler="euler_maruyama", sampler_steps=4, batch_size=30)


class ShiftByLabel(torch.nn.Module):
    """A network whose output is its input, shifted slightly by the label."""

    def forward(self, x, times, y):
        return Prediction(x * 0.5 + y[:, None, None, None] * 0.01, {})


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tiny("eval.samples=60"), tmp_path_factory.mktemp("run"))


def drawn(**changes) -> torch.Tensor:
    return draw_samples(ShiftByLabel(), SPEC.model_copy(update=changes), (1, 4, 4), 10, CPU)


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_maruyama"])
def test_samples_do_not_depend_on_batch_size_or_number(sampler: str) -> None:
    expected = drawn(sampler=sampler)
    assert expected.shape == (30, 1, 4, 4) and expected.dtype == torch.uint8
    assert torch.equal(drawn(sampler=sampler, batch_size=7), expected)
    assert torch.equal(drawn(sampler=sampler, samples=12), expected[:12])
    assert not torch.equal(drawn(sampler=sampler, seed=1), expected)


def test_sample_labels_are_balanced_exactly_or_on_average() -> None:
    index = np.arange(5000)
    balanced = sample_labels(SPEC.model_copy(update={"labels": "balanced"}), Streams(0), index, 10)
    assert np.bincount(balanced).tolist() == [500] * 10
    counts = np.bincount(sample_labels(SPEC, Streams(0), index, 10), minlength=10)
    assert len(set(counts)) > 1 and counts.min() > 400


def test_recorded_frechet_distance_equals_its_definition(record: Record) -> None:
    """The reference: means, covariances and scipy's matrix square root of the checkpoint's samples."""
    spec = tiny("eval.samples=60")
    dataset = open_dataset(spec.data)
    train = split(dataset, spec.data.held_out).train
    model = load_ema(checkpoint_files.checkpoints(record.path / "checkpoints")[-1], spec, dataset, CPU)
    fake = draw_samples(model, spec.eval, dataset.shape, dataset.classes, CPU)
    extract = open_extractor("local", {}, dataset, train, CPU)
    a, b = (
        extract(pixels).double().numpy() for pixels in (fake, torch.from_numpy(images(dataset, train)[0]))
    )
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert record.of("eval")[-1]["metrics"]["fd:local"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert record.of("eval")[-1]["metrics"]["fd:local"]["n"] == 60


def test_protocol_digest_changes_only_with_fields_that_change_values() -> None:
    dataset = open_dataset(tiny().data)
    train = split(dataset, 0.5).train

    def of(**changes) -> str:
        return digest(protocol(SPEC.model_copy(update=changes), dataset, train, {}))

    same = [of(), of(every=3), of(batch_size=3), of(grid=3), of(replicates=3), of(weights={"a": "b"})]
    other = [
        of(samples=31),
        of(sampler="heun"),
        of(sampler_steps=5),
        of(guidance=1.5),
        of(labels="balanced"),
        of(seed=1),
    ]
    assert len(set(same)) == 1 and len({*same, *other}) == 1 + len(other)
    assert digest(protocol(SPEC, dataset, train[:-1], {})) != of()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fdd:local", "unknown metric .*Did you mean"),
        ("fd:", "names no network: write fd:<extractor>"),
        ("precision", "names no network|unknown metric"),
        ("fd:nothing", "unknown extractor 'nothing'"),
        ("sfid:local", "unknown metric"),
        ("fvd", "expects video"),
        ("fd:i3d", "expects video, but this run generates images"),
        ("kid:local", "subsets of 1000, but one side has 30"),
        ("fd_infinity:local", "needs at least 100 samples, but eval.samples = 30: raise it"),
        (
            "accuracy:inception",
            "eval.metrics 'accuracy:inception': accuracy needs a classifier of this data set's classes",
        ),
        (
            "fd:torchscript@00112233",
            "does not name its file; add --set eval.weights.torchscript@00112233=FILE",
        ),
    ],
)
def test_evaluator_rejects_metrics_that_cannot_be_computed(name: str, message: str) -> None:
    dataset = open_dataset(tiny().data)
    with pytest.raises(UserError, match=message):
        Evaluator(SPEC.model_copy(update={"metrics": (name,)}), dataset, np.arange(50), CPU)


def test_image_grid_shows_every_pixel() -> None:
    pixels = np.arange(3 * 3 * 2 * 2, dtype=np.uint8).reshape(3, 3, 2, 2)
    grid = image_grid(pixels, columns=2)
    assert grid.shape == (5, 5, 3)
    assert np.array_equal(grid[:2, 3:], pixels[1].transpose(1, 2, 0)) and np.array_equal(
        grid[3:, :2], pixels[2].transpose(1, 2, 0)
    )
    assert (grid[3:, 3:] == 255).all() and image_grid(pixels[:, :1]).ndim == 2


def test_eval_command_repeats_the_recorded_values(record: Record) -> None:
    result = CliRunner().invoke(eval_command, [str(record.path), "--json"])
    found = json.loads(result.stdout)
    last = record.of("eval")[-1]
    assert found["metrics"] == last["metrics"] and found["protocol"] == last["protocol"]
    more = json.loads(
        CliRunner().invoke(eval_command, [str(record.path), "--json", "--set", "eval.samples=61"]).stdout
    )
    assert more["protocol"] != last["protocol"] and more["metrics"]["fd:local"]["n"] == 61


def test_eval_command_prints_interval_and_replicates(record: Record) -> None:
    """The interval over replicates equals that of --json; a single evaluation of a distance has no
    interval.
    """
    call = [str(record.path), "--set", "eval.replicates=3", "--no-record"]
    row = json.loads(CliRunner().invoke(eval_command, [*call, "--json"]).stdout)["metrics"]["fd:local"]
    (line,) = CliRunner().invoke(eval_command, call).stdout.splitlines()
    shown = f"fd:local {row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]  (step 12, n = 60 in each of 3"
    assert line.startswith(shown) and len(row["replicates"]) == 3
    (line,) = CliRunner().invoke(eval_command, call[:1]).stdout.splitlines()
    assert "[" not in line and "(step 12, n = 60, " in line


def test_sample_command_writes_picture_and_npz_of_the_recorded_latents(
    record: Record, tmp_path: Path
) -> None:
    picture, arrays = tmp_path / "a.png", tmp_path / "a.npz"
    for output in (picture, arrays):
        assert (
            CliRunner().invoke(sample_command, [str(record.path), "-n", "12", "-o", str(output)]).exit_code
            == 0
        )
    found = np.load(arrays, allow_pickle=False)["arr_0"]
    assert found.shape == (12, 8, 8, 1) and found.dtype == np.uint8
    grid = np.asarray(Image.open(picture))
    # Every pixel of an 8x8 sample is a square of 8x8.
    assert np.array_equal(grid[:64:8, :64:8], found[0, :, :, 0])
    logged = np.asarray(Image.open(record.path / "samples" / "step-00000012.png"))
    assert np.array_equal(logged[:64:8, :64:8], found[0, :, :, 0])


def test_digits_preset_has_a_metric_without_downloads() -> None:
    assert load_spec("digits").eval.metrics == ("fd:local",)


class Broken(torch.nn.Module):
    """A network whose samples are not finite for one label."""

    def forward(self, x, times, y):
        broken = torch.where(y == 3, float("nan"), 1.0)
        return Prediction(x * broken[:, None, None, None], {})


def test_samples_that_are_not_finite_have_no_value() -> None:
    data = open_dataset(load_spec("digits").data)
    sides = split(data, 0.5)
    spec = SPEC.model_copy(update={"labels": "balanced", "batch_size": 12, "grid": 10})
    result = Evaluator(spec, data, sides.train, CPU)(Broken())
    assert result is not None and not result.metrics
    assert result.errors == {"fd:local": "the network draws samples that are not finite: 3 of 30"}


def test_drawing_samples_that_are_not_finite_is_a_user_error() -> None:
    with pytest.raises(UserError, match="draws samples that are not finite"):
        draw_samples(Broken(), SPEC, (1, 4, 4), 10, CPU)
