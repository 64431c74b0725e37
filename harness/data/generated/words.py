"""48 short English words in Pillow's built-in bitmap letters: 1,920 pictures of 16x32 pixels, for
typography."""

from __future__ import annotations

import hashlib

import numpy as np

from harness.config.spec import DataSpec
from harness.data.dataset import Sample
from harness.runtime.random_streams import Streams

_WORDS = """
able bird blue book cake city cold dark door dream fish fire flow glass gold green hand heart horse house ice jump king
lamp leaf light milk moon music night ocean paper quick rain river road salt ship snow star stone sun time tree voice
water wind zebra
"""
WORDS = tuple(_WORDS.split())
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
HEIGHT, WIDTH, LONGEST = 16, 32, 5
LETTER = (6, 11)
"""Width and height of a letter's cell in pixels."""
EACH = 40
PALE = 160.0
"""Ink is even in PALE .. 255, on a ground of 0."""


class Words:
    """Words: grey pictures of 16x32, one class a word; place and ink vary, letters do not.

    The letters are Pillow's `load_default_imagefont`: pixels, the same on every machine. `text(index)` is
    what a picture says.
    """

    modality = "image"
    reads = ()
    classes = len(WORDS)
    shape = (1, HEIGHT, WIDTH)
    words = WORDS
    """What the pictures of each class say."""

    def __init__(self, spec: DataSpec) -> None:
        self._pixels = written([self.text(index) for index in range(len(self))], "data/words")
        self.fingerprint = hashlib.sha256(self._pixels.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return EACH * len(WORDS)

    def sample(self, index: int) -> Sample:
        return Sample(self._pixels[index][None], index % len(WORDS))

    def key(self, index: int) -> bytes:
        return self._pixels[index].tobytes()

    def text(self, index: int) -> str:
        return WORDS[index % len(WORDS)]

    @staticmethod
    def primer(count: int) -> tuple[np.ndarray, list[str]]:
        """Pictures uint8 (count, HEIGHT, WIDTH) of random strings and what they say: what a reader learns
        from."""
        texts = random_texts(count)
        return written(texts, "data/words/random/place"), texts


def written(texts: list[str], stream: str) -> np.ndarray:
    """Texts of 1 .. LONGEST letters -> uint8 (n, HEIGHT, WIDTH), place and ink drawn from a stream by
    number."""
    drawn = Streams(0).uniform(stream, range(len(texts)), (3,)).numpy().astype(np.float64)
    pixels = np.zeros((len(texts), HEIGHT, WIDTH), np.uint8)
    for picture, text, (down, right, ink) in zip(pixels, texts, drawn, strict=True):
        letters = _line(text)
        height, width = letters.shape
        top, left = int(down * (HEIGHT - height + 1)), int(right * (WIDTH - width + 1))
        picture[top : top + height, left : left + width] = letters * round(PALE + (255 - PALE) * ink)
    return pixels


def random_texts(count: int) -> list[str]:
    """Strings of 1 .. LONGEST letters, each letter as likely as any other: what a reader is trained on."""
    draws = Streams(0).uniform("data/words/random", range(count), (LONGEST + 1,)).numpy()
    return [
        "".join(ALPHABET[int(x * len(ALPHABET))] for x in row[: 1 + int(length * LONGEST)])
        for length, *row in draws.tolist()
    ]


def _line(text: str) -> np.ndarray:
    """uint8 0 or 1, (LETTER height, LETTER width * letters)."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = LETTER
    page = Image.new("1", (width * len(text), height))
    ImageDraw.Draw(page).text((0, 0), text, fill=1, font=ImageFont.load_default_imagefont())
    return np.asarray(page).astype(np.uint8)
