"""The real side of evaluations: kept by content, with the bits of a fresh pass, and read once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.backbone.sit import Prediction
from harness.config.data_spec import DataSpec
from harness.config.evaluation_spec import EvalSpec
from harness.data.dataset import Dataset, Sample
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation import real_side
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.kept_features import PROBE
from harness.evaluation.real_side import REAL_BATCH, Count
from harness.files.cache import cache_dir
from metrics.distances.frechet import Moments
from metrics.suite import METRICS

pytestmark = pytest.mark.usefixtures("quick_networks")
CPU = torch.device("cpu")
VALUES = tuple(f"{value}:local" for metric in METRICS for value in metric.values if value != "sfid")
SPEC = EvalSpec(samples=1000, sampler="euler", sampler_steps=1, batch_size=500, metrics=VALUES)
FEW = EvalSpec(samples=60, sampler="euler", sampler_steps=1, batch_size=60, metrics=("fd:local",))


class Painter(torch.nn.Module):
    def forward(self, x, times, y):
        return Prediction(x * 0.5 + y[:, None, None, None] * 0.01, {})


@dataclass
class Counted:
    """A data set that counts the samples decoded."""

    inner: Dataset
    read: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __len__(self) -> int:
        return len(self.inner)

    def sample(self, index: int) -> Sample:
        self.read.append(index)
        return self.inner.sample(index)


@pytest.fixture(autouse=True)
def _features_of_this_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use the trained networks of other tests, but a cache of features that begins empty."""
    monkeypatch.setattr("harness.evaluation.kept_features.VERSION", str(tmp_path))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The sizes of the passes over real samples."""
    found: list[int] = []
    run = real_side.real_features

    def counted(extract: Any, dataset: Any, index: np.ndarray, *rest: Any) -> None:
        found.append(len(index))
        run(extract, dataset, index, *rest)

    monkeypatch.setattr(real_side, "real_features", counted)
    yield found


def prepared(spec: EvalSpec = FEW, dataset: Any = None, held_out: float = 0.2, **given: Any) -> Evaluator:
    dataset = dataset or open_dataset(DataSpec())
    sides = split(dataset, held_out)
    return Evaluator(spec, dataset, sides.train, CPU, sides.held_out, **given)


@pytest.mark.slow
def test_every_metric_has_the_same_bits_from_the_cache_as_fresh(passes: list[int]) -> None:
    fresh = prepared(SPEC)
    assert len(passes) == 2
    cached = prepared(SPEC)
    assert len(passes) == 2
    first, second = fresh(Painter()), cached(Painter())
    assert first is not None and second is not None
    assert first.rows == second.rows and set(first.rows) == set(VALUES) and not first.errors
    assert fresh.noise_floor == cached.noise_floor and fresh.noise_floor["fd:local"]["held_out"]["mean"] > 0


def test_kept_features_are_those_of_the_network() -> None:
    """The authority: the network applied to the training split, without the cache."""
    evaluator = prepared(SPEC)
    dataset = open_dataset(DataSpec())
    x = torch.from_numpy(images(dataset, split(dataset, 0.2).train)[0])
    direct = torch.cat([evaluator.extractors["local"](part) for part in x.split(REAL_BATCH)]).numpy()
    for side in (evaluator.real["local"], prepared(SPEC).real["local"]):
        assert side.rows is not None and np.array_equal(side.rows, direct)
        assert isinstance(side.features, Moments)
        assert np.allclose(side.features.mean, direct.mean(0, dtype=np.float64), rtol=1e-10)


def test_second_start_decodes_only_the_probe() -> None:
    prepared()
    counted = Counted(open_dataset(DataSpec()))
    prepared(dataset=counted)
    assert len(counted.read) == 2 * PROBE


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, 0),
        ({"spec": FEW.model_copy(update={"guidance": 2.0, "seed": 3, "sampler": "heun"})}, 0),
        # The halves of the noise floor depend on the number of samples.
        ({"spec": FEW.model_copy(update={"samples": 50})}, 2),
        ({"spec": FEW.model_copy(update={"metrics": ("fd:local", "precision:local")})}, 1),
        ({"held_out": 0.3}, 2),
    ],
)
def test_pass_is_repeated_only_for_other_content(
    passes: list[int], change: dict[str, Any], again: int
) -> None:
    prepared()
    begun = len(passes)
    prepared(**change)
    assert len(passes) - begun == again


def test_other_bits_of_the_network_have_another_entry(
    passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example another number of threads, whose sums round differently."""
    prepared()
    open_extractor = Evaluator.__init__.__globals__["open_extractor"]

    def rounded(*given: Any) -> Any:
        from dataclasses import replace

        extract = open_extractor(*given)
        network = extract.network
        return replace(extract, network=lambda x: {n: y * (1 + 2**-22) for n, y in network(x).items()})

    monkeypatch.setattr("harness.evaluation.evaluator.open_extractor", rounded)
    prepared()
    assert len(passes) == 4


def test_damaged_entry_is_measured_again(passes: list[int]) -> None:
    before = set(cache_dir("features").glob("*.safetensors"))
    first = prepared().noise_floor
    for entry in set(cache_dir("features").glob("*.safetensors")) - before:
        entry.write_bytes(entry.read_bytes()[:-5])
    assert prepared().noise_floor == first and len(passes) == 4


def test_refusal_comes_before_real_samples_are_read(passes: list[int]) -> None:
    def refuse(weights: Any) -> None:
        assert set(weights) == {"local"} and len(weights["local"]) == 64
        raise UserError("other weights")

    with pytest.raises(UserError, match="other weights"):
        prepared(check=refuse)
    assert passes == []


def test_long_pass_notes_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(real_side.time, "monotonic", lambda: now[0])
    notes: list[str] = []
    count = Count(notes.append, "reading 50,000 real samples for fd:inception")
    for seconds, done in ((1.9, 1000), (2.0, 1500), (11.9, 6000), (12.0, 12_000)):
        now[0] = seconds
        count.at(done)
    assert notes == [
        "reading 50,000 real samples for fd:inception: 1,500",
        "reading 50,000 real samples for fd:inception: 12,000",
    ]
