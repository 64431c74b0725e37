"""Images of words: letters that are the same at any position, and their texts."""

from __future__ import annotations

import numpy as np
import pytest

from harness.data.dataset import Sample
from harness.data.generated.words import LONGEST, PALE, WORDS, Words, random_texts, written
from tests.harness.data.pictures import opened

FLOW = [
    "..###.####..............",
    ".##.....##..............",
    "#####...##...###.##.#.##",
    ".##.....##..##.##.#.#.#.",
    ".##.....##..##.##.#####.",
    ".##.....##..##.##..####.",
    "#####.######.###...#.#..",
]


@pytest.fixture(scope="module")
def data() -> Words:
    return opened("words", "")


def ink(pixels: np.ndarray) -> np.ndarray:
    """Return the bounding box of the text as bools."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] > 0


def test_words_declares_its_shape_and_texts(data: Words) -> None:
    assert (data.modality, data.classes, data.shape, len(data)) == ("image", 48, (1, 16, 32), 1920)
    assert len(set(WORDS)) == 48 and all(2 < len(word) <= LONGEST for word in WORDS)
    sample = data.sample(49)
    assert isinstance(sample, Sample) and sample.x.shape == data.shape and sample.x.dtype == np.uint8
    assert data.text(49) == WORDS[sample.label] == WORDS[1]


def test_written_draws_these_pixels() -> None:
    """The letters come from Pillow, and the data must not change with its version."""
    drawn = ink(written(["flow"], "data/words")[0])
    lines = ["".join("#" if dot else "." for dot in row) for row in drawn]
    assert lines == FLOW


def test_images_of_a_word_differ_only_in_position_and_brightness(data: Words) -> None:
    for word in range(0, 48, 7):
        pictures = [data.sample(word + 48 * repeat).x[0] for repeat in range(40)]
        assert all(np.array_equal(ink(p), ink(pictures[0])) for p in pictures)
        assert all(len(np.unique(p)) == 2 and p.max() >= PALE for p in pictures)
        assert len({p.tobytes() for p in pictures}) > 30
    assert len({ink(data.sample(word).x[0]).tobytes() for word in range(48)}) == 48


def test_random_texts_use_every_letter_and_length() -> None:
    texts = random_texts(3000)
    assert texts == random_texts(3000)
    assert {len(text) for text in texts} == set(range(1, LONGEST + 1))
    letters = np.unique(list("".join(texts)), return_counts=True)[1]
    assert len(letters) == 26 and letters.min() > 0.75 * letters.mean()
    assert written(texts[:5], "data/test").shape == (5, 16, 32)
