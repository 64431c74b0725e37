"""Feature passes: moments and rows, of all samples or under masks, collected one batch later."""

from __future__ import annotations

import numpy as np
import torch

from harness.evaluation.features import FeaturePass, FeatureSet, Masked
from metrics.distances.frechet import Moments
from metrics.extractors.base import Extractor

X = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50) % 7


def network(images: torch.Tensor) -> dict[str, torch.Tensor]:
    x = images.double().mean((2, 3))
    return {"features": x, "logits": 2 * x}


MEANS = Extractor("means", 3, "0" * 64, "none", 3, torch.device("cpu"), network, beside={"logits": 3})
FEATURES = network(X)["features"].float().numpy()


def passed(*sets: Masked, batch: int = 8) -> FeaturePass:
    found = FeaturePass(MEANS, sets)
    for start in range(0, len(X), batch):
        found.add(X[start : start + batch], LABELS[start : start + batch])
    found.finish()
    return found


def same(found: Moments, rows: np.ndarray) -> bool:
    """Return whether moments are bitwise equal to those of rows added at once."""
    expected = Moments()
    expected.add(rows)
    return found.n == len(rows) and np.array_equal(found.covariance, expected.covariance)


def test_feature_pass_does_not_depend_on_the_batch_size() -> None:
    for batch in (1, 8, 50):
        kept = FeatureSet.of_parts({"features", "rows", "logits"})
        assert passed(Masked(kept), batch=batch).n == 50
        side = kept.side()
        assert isinstance(side.features, Moments) and same(side.features, FEATURES)
        assert side.rows is not None and np.array_equal(side.rows, FEATURES)
        assert side.logits is not None and np.array_equal(side.logits, 2 * FEATURES)
        assert side.labels is not None and np.array_equal(side.labels, LABELS)
        assert side.spatial is None


def test_feature_pass_divides_samples_by_masks() -> None:
    mask = np.arange(50) % 3 == 0
    inside, outside = FeatureSet(["features"]), FeatureSet(["features"])
    passed(Masked(inside, mask), Masked(outside, ~mask))
    assert same(inside.moments["features"], FEATURES[mask])
    assert same(outside.moments["features"], FEATURES[~mask])
    merged = inside.merged(outside).moments["features"]
    assert merged.n == 50 and np.allclose(merged.covariance, np.cov(FEATURES, rowvar=False))


def test_feature_pass_collects_a_batch_when_the_next_one_starts() -> None:
    kept = FeatureSet(rows=["features"])
    found = FeaturePass(MEANS, [Masked(kept)])
    found.add(X[:20])
    assert found.n == 0
    found.add(X[20:])
    assert found.n == 20
    found.finish()
    assert found.n == 50 and np.array_equal(kept.rows["features"], FEATURES)


def test_feature_pass_stops_collecting_when_features_are_not_finite() -> None:
    def broken(images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = network(images)
        found["features"][2, 1] = torch.nan
        return found

    extract = Extractor("broken", 3, "0" * 64, "none", 3, torch.device("cpu"), broken)
    kept = FeatureSet(["features"])
    found = FeaturePass(extract, [Masked(kept)])
    found.add(X[:20])
    found.finish()
    assert "not finite in 1 of 20 rows; the first is row 2" in str(found.error)
    found.add(X[20:])
    found.finish()
    assert kept.moments["features"].n == 0


def test_feature_set_of_known_count_keeps_rows_in_one_array() -> None:
    kept = FeatureSet(rows=["features"], count=50)
    passed(Masked(kept))
    assert np.array_equal(kept.rows["features"], FEATURES)
    assert kept.part("features") is kept.rows["features"]
