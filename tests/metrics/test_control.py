"""Ridge regression against scikit-learn; decoding from targets, from noise, and from moving digits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from metrics import MetricError
from metrics.domain.control import EVERY, PENALTIES, decoded, ridge
from metrics.domain.video_consistency import centres
from tests.harness.data.pictures import opened


def sets(n: int = 240, d: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, targets and video numbers, 4 rows per video.

    Targets are linear in five features, with noise of a tenth of their variance.
    """
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d)) * random.uniform(0.1, 10, d) + 3
    signal = ((x - 3) / x.std(0))[:, :5] @ random.normal(size=(5, 2))
    y = signal + random.normal(size=signal.shape) * signal.std(0) / 3
    return x, y, np.arange(n) // 4


@pytest.mark.parametrize("penalty", [1e-3, 0.1, 10.0])
def test_ridge_equals_scikit_learn(penalty: float) -> None:
    x, y, _ = sets()
    x = np.concatenate([x, np.ones((len(x), 1))], 1)  # a constant column
    scale = StandardScaler().fit(x[:200])
    theirs = (
        Ridge(alpha=penalty * 200).fit(scale.transform(x[:200]), y[:200]).predict(scale.transform(x[200:]))
    )
    (ours,) = ridge(x[:200], y[:200], np.array([penalty]), x[200:])
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_ridge_equals_scikit_learn_when_columns_outnumber_rows() -> None:
    x, y, _ = sets(40, 100)
    theirs = Ridge(alpha=0.1 * 40).fit(StandardScaler().fit_transform(x), y)
    (ours,) = ridge(x, y, np.array([0.1]), x)
    np.testing.assert_allclose(ours, theirs.predict(StandardScaler().fit_transform(x)), atol=1e-8)


def test_score_is_r2_on_held_out_videos() -> None:
    x, y, videos = sets()
    (found,) = decoded({8: x}, y, videos).values()
    out = videos % EVERY == 0
    (read,) = ridge(x[~out], y[~out], np.array([found.penalty]), x[out])
    assert found.r2.mean == pytest.approx(r2_score(y[out], read))
    assert found.penalty in PENALTIES and found.r2.n == 15 and found.r2.low < found.r2.mean < found.r2.high
    without = [r2_score(y[out & (videos != v)], read[videos[out] != v]) for v in np.unique(videos[out])]
    half = 1.96 * np.sqrt(14 / 15 * ((without - np.mean(without)) ** 2).sum())
    assert found.r2.high - found.r2.mean == pytest.approx(half, rel=1e-4)


def test_score_is_1_for_the_targets_and_0_for_noise() -> None:
    """The targets themselves score 1; features of other videos, and noise, score 0."""
    x, y, videos = sets(800)
    random = np.random.default_rng(1)
    layers = {
        "oracle": y,
        "linear": x,
        "shuffled": x[random.permutation(len(x))],
        "noise": random.normal(size=(800, 64)),
    }
    found = decoded(layers, y, videos)
    assert found["oracle"].r2.mean == pytest.approx(1, abs=1e-4)
    assert found["linear"].r2.mean == pytest.approx(0.9, abs=0.03)
    for floor in ("shuffled", "noise"):
        assert -0.1 < found[floor].r2.mean < 0.05 and found[floor].penalty >= 0.1
    assert decoded({"constant": np.ones((800, 3))}, y, videos)["constant"].r2.mean == pytest.approx(
        0, abs=0.01
    )


def test_moving_digits_decode_state_from_position_and_action_from_change() -> None:
    """Position is linear in the centre of mass up to the digit's offset, and velocity in its change."""
    data = opened("moving_digits", "")
    clips = np.stack([data.sample(index).x[0] for index in range(200)])
    path, videos = centres(clips), np.repeat(np.arange(200), 15)
    here, change = path[:, :-1].reshape(-1, 2), np.diff(path, axis=1).reshape(-1, 2)
    layers = {"centre": here, "change": change}
    state = decoded(layers, data.position[:200, :-1].reshape(-1, 2), videos)
    action = decoded(layers, data.velocity[:200, :-1].reshape(-1, 2), videos)
    assert state["centre"].r2.mean > 0.95 and state["change"].r2.mean < 0.1
    assert action["change"].r2.mean > 0.75 and action["centre"].r2.mean < 0.1


def test_invalid_inputs_are_rejected() -> None:
    x, y, videos = sets(40)
    for given, says in (
        ((x, y, videos[:-1]), r"but got 40 rows and video numbers of shape \(39,\)"),
        ((x, y, videos // 4), "at least 8 videos to hold some out, but got 3"),
        ((x[:-1], y, videos), "layer 1 has 39 rows of features for 40 rows of targets"),
        ((x, np.zeros_like(y), videos), "a target is constant on the held-out side"),
        ((np.where(x > 5, np.inf, x), y, videos), "layer 1 features are not finite"),
    ):
        with pytest.raises(MetricError, match=says):
            decoded({1: given[0]}, *given[1:])
