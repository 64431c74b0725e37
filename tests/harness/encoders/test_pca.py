"""Principal components of an encoder's features, compared with a singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.data.open import images, open_dataset, split
from harness.encoders import pca
from harness.encoders.base import Choice, described, open_encoder
from harness.encoders.pca import PcaEncoder
from harness.errors import UserError
from tests.support.runs import tiny

CPU, GRID = torch.device("cpu"), (4, 4)
DATASET = open_dataset(tiny().data)


def opened(name: str) -> PcaEncoder:
    return open_encoder(Choice(name), DATASET, grid=GRID, held_out=0.5, device=CPU)  # pyright: ignore


def pixels(index: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images(DATASET, index)[0]).float() / 127.5 - 1


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    """numpy's, of all tokens of the training split, standardised; its signs are set by the largest entry."""
    encoder = opened("pca:5:random:tiny")
    train = split(DATASET, 0.5).train
    tokens = encoder.inner.features(pixels(train)).double().numpy().reshape(-1, 32)
    mean, std = tokens.mean(0), tokens.std(0)
    _, sizes, axes = np.linalg.svd((tokens - mean) / std, full_matrices=False)
    axes = axes[:5] * np.sign(axes[np.arange(5), np.abs(axes[:5]).argmax(1)])[:, None]
    some = pixels(train[:3])
    expected = (encoder.inner.features(some).double().numpy() - mean) / std @ axes.T
    found = encoder.features(some)
    assert found.shape == (3, 16, 5) and encoder.dim == 5 and encoder.sha256 == encoder.inner.sha256
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
    # Not whitened: the variance of a component is its eigenvalue.
    variance = encoder.features(pixels(train)).flatten(0, 1).var(dim=0, correction=0)
    np.testing.assert_allclose(variance, sizes[:5] ** 2 / len(tokens), rtol=1e-3)


def test_cost_of_the_axes_is_one_pass_over_the_training_images_up_to_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder, images = opened("pca:5:random:tiny"), len(split(DATASET, 0.5).train)
    assert described(encoder)["one_off_flops"] == encoder.inner.flops * images
    monkeypatch.setattr(pca, "IMAGES", 7)
    assert opened("pca:5:random:tiny").one_off_flops == encoder.inner.flops * 7


def test_axes_are_read_from_the_cache() -> None:
    first, second = (opened(f"pca:{rank}:random:tiny") for rank in (5, 2))
    assert torch.equal(first._axes[:2], second._axes)


def test_architecture_needs_no_weights() -> None:
    about = PcaEncoder.architecture("3:random:small", (1, 8, 8), 10, GRID)
    inner = opened("random:small")
    assert (about.dim, about.heads) == (3, 0) and about.flops == inner.flops + 2 * 16 * 64 * 3
    assert opened("pca:3:random:small").flops == about.flops


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pca:local:small", "write the number of components, 1 to 4096, and an encoder"),
        ("pca:0:local:small", "write the number of components"),
        ("pca:99999999999:local:small", "write the number of components"),
        ("pca:8:cached:local:small", "not of cached:"),
        ("pca:8:run:runs/0123456789ab", "not of run:"),
        ("pca:33:random:tiny", "its tokens have 32 channels, so give at most 32 components"),
    ],
)
def test_other_names_are_rejected(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened(name)
