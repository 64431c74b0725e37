"""Pictures with captions: what a picture shows is what its captions and its truth state."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import astuple

import numpy as np
import pytest
from scipy.ndimage import zoom

from harness.data.dataset import Capabilities
from harness.data.generated.digits import read_digits
from harness.data.generated.prompts import (
    CELL,
    COLOURS,
    NUMBERS,
    SIZES,
    Group,
    Prompts,
    Truth,
    described,
    enlarged,
)
from harness.data.open import split
from tests.harness.data.pictures import opened

WORDS = {f"{name}{'es' if name == 'six' else 's'}": name for name in NUMBERS} | {n: n for n in NUMBERS}


FINGERPRINT = "ad5098d403535084"


@pytest.fixture(scope="module")
def data() -> Prompts:
    return opened("prompts", "")


def test_prompts_declares_shape_labels_and_captions(data: Prompts) -> None:
    assert (data.modality, data.classes, data.shape, len(data)) == ("image", 60, (3, 32, 32), 5000)
    has = Capabilities(data)
    assert has.captions is not None and has.truth is not None
    assert Capabilities(opened("digits", "")).captions is None
    sample = data.sample(17)
    assert sample.x.shape == data.shape and sample.x.dtype == np.uint8
    assert sample.label == data.label(17) and len(data.class_names) == 60


def test_label_is_colour_and_digit_of_the_first_object_row_by_row(data: Prompts) -> None:
    for index in range(300):
        places = {(t.row // CELL, t.column // CELL): t for t in data.truth(index).objects}
        first = places[min(places)]
        assert data.class_names[data.label(index)] == f"{first.colour} {NUMBERS[first.digit]}"
    assert len({data.label(index) for index in range(len(data))}) == 60


def test_prompts_does_not_change_with_the_machine(data: Prompts) -> None:
    """The fingerprint covers all pixels and captions, and is part of every run id."""
    assert data.fingerprint == opened("prompts", "").fingerprint == FINGERPRINT


def test_pictures_show_the_colour_and_place_of_every_object(data: Prompts) -> None:
    for index in range(0, 5000, 7):
        rest = data.sample(index).x.astype(int)
        for thing in data.truth(index).objects:
            side = SIZES[thing.size]
            box = (slice(None), slice(thing.row, thing.row + side), slice(thing.column, thing.column + side))
            ink = rest[box].max((1, 2))
            expected = np.array(COLOURS[thing.colour])
            np.testing.assert_allclose(ink, expected * ink.max() / expected.max(), atol=2)
            assert ink.max() > 0.75 * expected.max()
            rest[box] = 0
        assert not rest.any()


def test_digits_of_a_picture_are_those_of_the_truth(data: Prompts) -> None:
    """A nearest neighbour among scikit-learn's digits reads the class of a small digit."""
    values, labels = read_digits()
    for index in range(0, 400):
        for thing in data.truth(index).objects:
            if thing.size == "small":
                box = data.sample(index).x[:, thing.row : thing.row + 8, thing.column : thing.column + 8]
                grey = box.max(0).astype(float)
                scaled = grey * 16 / max(COLOURS[thing.colour])
                nearest = np.abs(values - scaled.reshape(1, 64)).sum(1).argmin()
                assert labels[nearest] == thing.digit


def test_relations_and_places_hold_for_the_centres(data: Prompts) -> None:
    seen: Counter[str] = Counter()
    for index in range(len(data)):
        truth = data.truth(index)
        centres = [(t.row + SIZES[t.size] / 2, t.column + SIZES[t.size] / 2, t.group) for t in truth.objects]
        seen[truth.relation or truth.place] += 1
        if truth.relation:
            axis = 1 if truth.relation in ("left of", "right of") else 0
            first, second = ([c[axis] for c in centres if c[2] == g] for g in (0, 1))
            before = truth.relation in ("left of", "above")
            assert max(first) < min(second) if before else min(first) > max(second)
        for word, axis, low in (
            ("top", 0, True),
            ("bottom", 0, False),
            ("left", 1, True),
            ("right", 1, False),
        ):
            if word in truth.place.split():
                assert all((c[axis] < CELL) == low for c in centres)
    assert len(seen) == 4 + 4 + 4 + 1 and min(seen.values()) > 80


def test_first_caption_names_every_attribute_in_order(data: Prompts) -> None:
    for index in range(0, 5000, 3):
        truth, caption = data.truth(index), data.captions(index)[0]
        found = re.findall(r"(a|two|three) (small|large) (\w+) (\w+)", caption)
        counts = {"a": 1, "two": 2, "three": 3}
        read = [(NUMBERS.index(WORDS[noun]), colour, size, counts[n]) for n, size, colour, noun in found]
        assert read == [astuple(group) for group in truth.groups]
        assert truth.relation in caption and truth.place in caption
        assert truth.count == sum(group.count for group in truth.groups)


def test_captions_of_a_sample_differ_in_number_and_words(data: Prompts) -> None:
    numbers = Counter(len(data.captions(index)) for index in range(len(data)))
    assert set(numbers) == {1, 2, 3} and min(numbers.values()) > 1500
    assert all(len(set(described(data.truth(i)))) == 3 for i in range(500))
    assert described(pair())[0] == "a small red seven left of two large blue ones"
    assert described(pair())[1:] == (
        "a picture of two large blue ones right of a small red seven",
        "a red seven and blue ones",
    )


def pair() -> Truth:
    return Truth((Group(7, "red", "small", 1), Group(1, "blue", "large", 2)), (), "left of", "")


def test_enlarged_agrees_with_scipy() -> None:
    values = read_digits()[0][:5].reshape(-1, 8, 8)
    expected = np.stack([zoom(image, 14 / 8, order=1, grid_mode=True, mode="nearest") for image in values])
    ours = enlarged(values.astype(np.int64), 14)
    np.testing.assert_allclose(ours, expected * 255 / 16, atol=1)
    np.testing.assert_array_equal(enlarged(values.astype(np.int64), 8), values.astype(int) * 255 // 16)


def test_held_out_captions_cover_all_digits_and_colours(data: Prompts) -> None:
    held_out = split(data, 0.1).held_out
    assert 400 < len(held_out) < 600
    groups = [group for index in held_out for group in data.truth(int(index)).groups]
    assert {group.digit for group in groups} == set(range(10))
    assert {group.colour for group in groups} == set(COLOURS)
