"""Character error rates: edit distances against a recursion; readers on real words, other words and noise."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.generated.words import random_texts, written
from metrics import MetricError
from metrics.domain import typography
from metrics.domain.typography import Reader, edit_distance, error_rate, reader, tesseract
from tests.harness.data.pictures import opened

COUNT = 192
SHORT = st.text("abc", max_size=5)
has_tesseract = pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")


@pytest.fixture(scope="module")
def words() -> tuple[np.ndarray, list[str]]:
    data = opened("words", "")
    return np.stack([data.sample(i).x[0] for i in range(COUNT)]), [data.text(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.fixture(scope="module")
def trained(cache_folder: Path) -> Reader:
    texts = random_texts(4000)
    return reader(written(texts, "data/words/random/place"), texts, cache=cache_folder)


# Errors


@settings(derandomize=True, deadline=None)
@given(SHORT, SHORT)
def test_edit_distance_equals_its_definition(first: str, second: str) -> None:
    @cache
    def least(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(least(a[1:], b) + 1, least(a, b[1:]) + 1, least(a[1:], b[1:]) + (a[0] != b[0]))

    assert edit_distance(first, second) == least(first, second)


def test_error_rate_equals_known_values() -> None:
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "flow") == 4
    rate = error_rate(["flow", "ric", "", "sno"], ["flow", "rice", "sun", "snow"])
    assert (
        rate.mean == pytest.approx((0 + 1 + 3 + 1) / 15) and rate.n == 4 and rate.low < rate.mean < rate.high
    )
    assert error_rate(["abcdefgh"], ["a"]).mean == 7
    assert error_rate(["a"] * 3, ["a"] * 3).mean == 0
    for read, wanted in (([], []), (["a"], ["a", "b"]), (["a"], [""])):
        with pytest.raises(MetricError, match="no empty one wanted"):
            error_rate(read, wanted)


# The locally trained reader


@pytest.mark.slow
def test_reader_reads_unseen_words(trained: Reader, words: tuple[np.ndarray, list[str]]) -> None:
    """The error is under 3 % on real words, and high on images of other words and on noise."""
    images, texts = words
    assert trained.error < 0.03
    read = trained.read(images)
    assert error_rate(read, texts).high < 0.03
    assert error_rate([*read[1:], *read[:1]], texts).low > 0.8
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    assert error_rate(trained.read(noise), texts).low > 0.8


@pytest.mark.slow
def test_reader_reads_letters_instead_of_guessing_words(trained: Reader) -> None:
    """Misspelt words are read as they are written."""
    texts = ["hause", "watel", "zzzz", "moom", "aab"]
    read = trained.read(written(texts, "data/test"))
    assert error_rate(read, texts).mean < 0.12


def test_reader_is_a_pure_function_of_its_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(typography, "STEPS", 3)
    texts = random_texts(200)
    images = written(texts, "data/test")
    before = torch.random.get_rng_state()
    first, again = reader(images, texts), reader(images, texts, cache=tmp_path)
    assert first.sha256 == again.sha256 and torch.equal(before, torch.random.get_rng_state())
    monkeypatch.setattr(typography, "_train", lambda *given: pytest.fail("trained again"))
    assert reader(images, texts, cache=tmp_path).sha256 == first.sha256


def test_reader_rejects_invalid_images_and_texts() -> None:
    with pytest.raises(MetricError, match=r"but got float64 of shape \(1, 2\)"):
        reader(np.zeros((1, 2)), ["a"])
    for texts in (["a"] * 99, ["A"] * 100, [""] * 100):
        with pytest.raises(MetricError, match="each with a text of letters a to z"):
            reader(np.zeros((100, 16, 32), np.uint8), texts)


# Tesseract


@has_tesseract
def test_tesseract_reads_real_words(words: tuple[np.ndarray, list[str]]) -> None:
    images, texts = words
    read = tesseract(images)
    assert error_rate(read, texts).high < 0.1
    assert error_rate([*read[1:], *read[:1]], texts).low > 0.8
    noise = np.random.default_rng(0).integers(0, 256, (20, 16, 32), dtype=np.uint8)
    assert error_rate(tesseract(noise), texts[:20]).low > 0.8


@has_tesseract
def test_tesseract_returns_one_word_per_image_when_some_are_blank(
    words: tuple[np.ndarray, list[str]],
) -> None:
    blank = np.zeros((1, 16, 32), np.uint8)
    read = tesseract(np.concatenate([blank, words[0][:3], blank, words[0][3:5], blank]))
    assert len(read) == 8 and [bool(word) for word in read] == [
        False,
        True,
        True,
        True,
        False,
        True,
        True,
        False,
    ]


def test_tesseract_reports_a_missing_slow_or_broken_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = np.zeros((2, 16, 32), np.uint8)
    with pytest.raises(MetricError, match=r"'tesseract-x' is not installed; run: apt install tesseract-ocr"):
        tesseract(images, program="tesseract-x")
    fake = tmp_path / "fake"
    fake.write_text("#!/bin/sh\necho 'no such language' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(MetricError, match="fake read 1 of 2 images: no such language"):
        tesseract(images, program=str(fake))

    def slow(*command: object, timeout: float, **options: object) -> None:
        raise subprocess.TimeoutExpired("tesseract", timeout)

    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(MetricError, match="did not read 2 images within 300 s"):
        tesseract(images, program=str(fake))
