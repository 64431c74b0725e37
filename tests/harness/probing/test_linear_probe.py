"""Measures of representations: compared with scikit-learn and float64 numpy, and their invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.probing.linear_probe import (
    Labelled,
    batch_size,
    fitted_head,
    linear_cka,
    linear_probe,
    local_distant,
    manhattan,
    over_images,
    repa_probe,
    spatial_decay,
)
from harness.runtime.random_streams import Streams
from metrics import MetricError


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def rotation(d: int, seed: int = 9) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def digits(width: int) -> tuple[Labelled, Labelled]:
    """Return raw pixels, or `width` random functions of them: 300 training and 150 held-out samples."""
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x = x.double() if width == 64 else (x.double() @ normal(64, width)).relu()
    return Labelled(x[:300], y[:300]), Labelled(x[300:450], y[300:450])


# There are 300 training samples: more than features, and fewer.
@pytest.mark.parametrize("width", [64, 700])
@pytest.mark.parametrize("ridge", [0.1, 1.0, 50.0])
def test_linear_probe_equals_ridge_of_sklearn(width: int, ridge: float) -> None:
    train, test = digits(width)
    scaler = StandardScaler()
    x, held = scaler.fit_transform(train.features), scaler.transform(test.features)
    hot = np.eye(10)[train.labels]
    named = Ridge(alpha=ridge).fit(x, hot).predict(held).argmax(1)
    found = linear_probe(train, test, 10, ridge=ridge)
    assert found.mean == pytest.approx(np.mean(named == test.labels.numpy()), abs=1e-12)
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(alpha=ridge))
    assert found.mean == pytest.approx(classifier.fit(train.features, train.labels).score(*test), abs=1e-12)
    assert 0.7 < found.mean < 1 and found.n == 150


def test_linear_probe_is_at_chance_for_noise_and_perfect_for_labels() -> None:
    labels = torch.arange(400) % 4
    noise, informative = normal(400, 3), torch.eye(4)[labels] + 0.01 * normal(400, 4)
    half = lambda x: (Labelled(x[:200], labels[:200]), Labelled(x[200:], labels[200:]))  # noqa: E731
    chance = linear_probe(*half(noise), 4)
    assert chance.low < 0.25 < chance.high
    certain = linear_probe(*half(informative), 4)
    assert (
        certain.mean == 1
        and certain.high == 1
        and certain.low == pytest.approx(200 / (200 + 1.96**2), abs=1e-4)
    )


def test_linear_probe_is_invariant_to_scale_and_shift_of_features() -> None:
    train, test = digits(64)
    scale = 10.0 ** torch.linspace(-3, 3, 64)
    shifted = [Labelled(part.features * scale + 7, part.labels) for part in (train, test)]
    assert linear_probe(*shifted, 10) == linear_probe(train, test, 10)


def head_by_hand(part: Labelled, classes: int, epochs: int, batch: int, seed: int) -> dict[str, np.ndarray]:
    """Train REPA's classifier in numpy, with normalisation, softmax regression and Adam written out.

    Adam is algorithm 1 of Kingma and Ba 2015.
    """
    x, hot = part.features.numpy(), np.eye(classes)[part.labels]
    n, d = x.shape
    mean, variance = np.zeros(d), np.ones(d)
    parameters = {"weight": np.zeros((classes, d)), "bias": np.zeros(classes)}
    first, second = ({name: np.zeros_like(value) for name, value in parameters.items()} for _ in range(2))
    step, steps = 0, epochs * (n // batch)
    for epoch in range(epochs):
        order = Streams(seed).permutation("probe/order", epoch, n)
        for start in range(0, n - batch + 1, batch):
            chosen = order[start : start + batch]
            moments = x[chosen].mean(0), x[chosen].var(0)
            mean = 0.9 * mean + 0.1 * moments[0]
            variance = 0.9 * variance + 0.1 * x[chosen].var(0, ddof=1)
            normalised = (x[chosen] - moments[0]) / np.sqrt(moments[1] + 1e-6)
            scores = np.exp(normalised @ parameters["weight"].T + parameters["bias"])
            error = (scores / scores.sum(1, keepdims=True) - hot[chosen]) / batch
            rate = 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2
            step += 1
            for name, gradient in {"weight": error.T @ normalised, "bias": error.sum(0)}.items():
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                unbiased = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
                parameters[name] = parameters[name] - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
    return {**parameters, "mean": mean, "variance": variance}


# All samples in one batch, an incomplete batch left out, and a batch reduced by the number of steps.
@pytest.mark.parametrize(("n", "batch"), [(40, 40), (150, 64), (5100, 65)])
def test_fitted_head_equals_that_by_hand(n: int, batch: int) -> None:
    part = Labelled(normal(n, 6).cumsum(1) + 2, torch.arange(n) % 3)
    expected = head_by_hand(part, 3, epochs=3, batch=batch, seed=5)
    norm, linear = fitted_head(part, 3, seed=5, epochs=3)
    found = {
        "weight": linear.weight,
        "bias": linear.bias,
        "mean": norm.running_mean,
        "variance": norm.running_var,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].detach(), value, atol=1e-12, err_msg=name)


def test_batch_size_is_the_published_one_on_imagenet() -> None:
    assert batch_size(1_281_167) == 16_384 and 1_281_167 // 16_384 == 78
    assert [batch_size(n) for n in (30, 64, 4_000, 50_000, 10**7)] == [30, 64, 64, 641, 16_384]


def test_repa_probe_is_the_accuracy_of_the_fitted_head() -> None:
    train, test = digits(64)
    found = repa_probe(train, test, 10)
    named = fitted_head(train, 10).eval()(test.features).argmax(1)
    assert found.mean == (named == test.labels).double().mean() and found.n == 150
    assert found.low < found.mean < found.high and found.mean == pytest.approx(
        linear_probe(train, test, 10).mean, abs=0.1
    )


def test_fitted_head_depends_on_its_seed_and_not_on_that_of_torch() -> None:
    part = Labelled(normal(130, 4), torch.arange(130) % 2)
    weights = []
    for torch_seed, seed in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        weights.append(fitted_head(part, 2, seed=seed, epochs=2)[1].weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def cka_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Return HSIC of two matrices of inner products, normalised (Kornblith et al., equation 3)."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    hsic = lambda a, b: np.trace(a @ a.T @ centre @ b @ b.T @ centre)  # noqa: E731
    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(3, 40), st.integers(1, 30), st.integers(1, 30))
def test_linear_cka_equals_its_definition(seed: int, n: int, d1: int, d2: int) -> None:
    x, y = normal(n, d1, seed=seed) + 3, normal(n, d2, seed=seed + 1)
    y[:, 0] += x[:, 0]
    found = linear_cka(x, y)
    assert found.mean == pytest.approx(cka_by_hand(x.numpy(), y.numpy()), abs=1e-10)
    assert found.mean == pytest.approx(linear_cka(y, x).mean, abs=1e-10)
    turned = linear_cka(5 * x @ rotation(d1) - 2, y)
    assert turned.mean == pytest.approx(found.mean, abs=1e-10)
    assert 0 <= found.mean <= 1 + 1e-12


def test_linear_cka_is_one_for_rotations_and_zero_for_independent_features() -> None:
    x = normal(2000, 5)
    assert linear_cka(x, x @ rotation(5) * 3).mean == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, normal(2000, 5, seed=1)).mean < 0.01
    # It depends on the scales of single features.
    assert linear_cka(x, x * torch.tensor([1, 1, 1, 1, 50.0])).mean < 0.5


def cosines_by_hand(tokens: np.ndarray) -> np.ndarray:
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    return np.einsum("btd,bsd->bts", unit, unit)


@pytest.mark.parametrize(("grid", "far"), [((4, 4), 2), ((16, 16), 6), ((3, 5), 2)])
def test_local_distant_equals_loops_over_pairs(grid: tuple[int, int], far: int) -> None:
    tokens = normal(3, grid[0] * grid[1], 6).cumsum(1)
    cosine, per_image = cosines_by_hand(tokens.numpy()), []
    for image in range(3):
        near, distant = [], []
        for i in range(grid[0] * grid[1]):
            for j in range(i):
                steps = abs(i // grid[1] - j // grid[1]) + abs(i % grid[1] - j % grid[1])
                if steps == 1:
                    near.append(cosine[image, i, j])
                if steps >= far:
                    distant.append(cosine[image, i, j])
        per_image.append(np.mean(near) - np.mean(distant))
    assert local_distant(tokens, grid).tolist() == pytest.approx(per_image, abs=1e-12)
    found = over_images(local_distant(tokens, grid))
    assert found.mean == pytest.approx(np.mean(per_image), abs=1e-12)
    # Student's t with 2 degrees of freedom.
    half = 4.302652729911275 * np.std(per_image, ddof=1) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=1e-10)
    assert found.n == 3


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_spatial_decay_equals_minus_the_correlation(grid: tuple[int, int]) -> None:
    tokens = normal(4, grid[0] * grid[1], 6).cumsum(1)
    upper = np.triu_indices(grid[0] * grid[1], 1)
    distance = manhattan(grid).numpy()[upper]
    expected = [-np.corrcoef(cosine[upper], distance)[0, 1] for cosine in cosines_by_hand(tokens.numpy())]
    assert spatial_decay(tokens, grid).tolist() == pytest.approx(expected, abs=1e-12)


def test_spatial_measures_distinguish_order_from_none() -> None:
    """Directions that rotate along a line have order; shuffled or equal ones have none."""
    angle = torch.linspace(0, math.pi / 2, 12).double()
    line = torch.stack([angle.cos(), angle.sin()], -1)[None]
    assert spatial_decay(line, (1, 12)) > 0.95
    assert local_distant(line, (1, 12)) > 0.35
    mixed = torch.stack(
        [line[0, torch.randperm(12, generator=torch.Generator().manual_seed(i))] for i in range(200)]
    )
    for measure in (spatial_decay, local_distant):
        found = over_images(measure(mixed, (1, 12)))
        assert found.low < 0 < found.high
        assert measure(torch.ones(2, 12, 3), (1, 12)).abs().max() < 1e-12


@pytest.mark.parametrize("measure", [spatial_decay, local_distant])
def test_spatial_measures_depend_on_directions_only(measure) -> None:
    tokens = normal(2, 16, 8).cumsum(1)
    scale = normal(2, 16, 1, seed=4).abs() + 0.1
    turned = measure(tokens @ rotation(8) * scale, (4, 4))
    torch.testing.assert_close(turned, measure(tokens, (4, 4)), atol=1e-12, rtol=0)


def test_features_are_rejected_when_invalid() -> None:
    broken = normal(4, 2)
    broken[1, 0] = math.nan
    with pytest.raises(MetricError, match="not finite"):
        linear_cka(broken, normal(4, 3))
    for probe in (linear_probe, repa_probe):
        with pytest.raises(MetricError, match="not finite"):
            probe(Labelled(broken, torch.arange(4) % 2), Labelled(normal(4, 2), torch.arange(4) % 2), 2)
    with pytest.raises(MetricError, match="4 and 5 rows"):
        linear_cka(normal(4, 2), normal(5, 2))
    with pytest.raises(MetricError, match="the same for all samples"):
        linear_cka(torch.ones(4, 2), normal(4, 2))
    with pytest.raises(MetricError, match="2x1 grid have a distance of at least 2"):
        local_distant(normal(3, 2, 4), (2, 1))
