"""Generated images of 48 short English words in Pillow's built-in bitmap font, for metrics of typography."""

from __future__ import annotations

import hashlib

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.generated.captioned import caption_bytes, some_of, wants_captions
from harness.runtime.random_streams import Streams

_WORDS = """
able bird blue book cake city cold dark door dream fish fire flow glass gold green hand heart horse house
ice jump king lamp leaf light milk moon music night ocean paper quick rain river road salt ship snow star
stone sun time tree voice water wind zebra
"""
WORDS = tuple(_WORDS.split())
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
HEIGHT, WIDTH, LONGEST = 16, 32, 5
LETTER = (6, 11)
"""Width and height of a character cell in pixels."""
EACH = 40
PALE = 160.0
"""Lowest brightness of the text, uniform in PALE .. 255 on a background of 0."""


class Words:
    """Words: grey images of 16x32, one class per word; position and brightness vary, letters do not.

    There are 1,920 samples. The letters are Pillow's `load_default_imagefont`, a bitmap font that is the same
    on every machine. `text(index)` is the text of an image. For a run with a text encoder, which sets
    `data.caption_key`, an image has one to three captions that spell it.
    """

    modality = "image"
    reads = ("caption_key",)
    classes = len(WORDS)
    caption_source = "generated"
    shape = (1, HEIGHT, WIDTH)
    words = WORDS
    """The text of each class."""

    def __init__(self, spec: DataSpec) -> None:
        captioned = wants_captions(spec)
        texts = [self.text(index) for index in range(len(self))]
        self._pixels = written(texts, "data/words")
        content = hashlib.sha256(self._pixels.tobytes())
        if captioned:
            captions = some_of([described(text) for text in texts], "data/words/captions")
            self.captions = captions.__getitem__
            content.update(caption_bytes(captions))
        self.fingerprint = content.hexdigest()[:16]

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
        """Return images uint8 (count, HEIGHT, WIDTH) of random strings, and the strings, to train a text
        reader."""
        texts = random_texts(count)
        return written(texts, "data/words/random/place"), texts


def described(text: str) -> tuple[str, str, str]:
    """Return three captions of an image of a word."""
    return f'the word "{text}"', f'an image that reads "{text}"', f'"{text}" in bright letters on black'


def written(texts: list[str], stream: str) -> np.ndarray:
    """Render texts of 1 .. LONGEST letters as uint8 (n, HEIGHT, WIDTH).

    Position and brightness of text i are drawn at index i of a stream.
    """
    drawn = Streams(0).uniform(stream, range(len(texts)), (3,)).numpy().astype(np.float64)
    pixels = np.zeros((len(texts), HEIGHT, WIDTH), np.uint8)
    for image, text, (down, right, brightness) in zip(pixels, texts, drawn, strict=True):
        letters = _line(text)
        height, width = letters.shape
        top, left = int(down * (HEIGHT - height + 1)), int(right * (WIDTH - width + 1))
        image[top : top + height, left : left + width] = letters * round(PALE + (255 - PALE) * brightness)
    return pixels


def random_texts(count: int) -> list[str]:
    """Return strings of 1 .. LONGEST letters, lengths and letters uniform."""
    draws = Streams(0).uniform("data/words/random", range(count), (LONGEST + 1,)).numpy()
    return [
        "".join(ALPHABET[int(x * len(ALPHABET))] for x in row[: 1 + int(length * LONGEST)])
        for length, *row in draws.tolist()
    ]


def _line(text: str) -> np.ndarray:
    """Render a text as uint8 0 or 1, (LETTER height, LETTER width * letters)."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = LETTER
    page = Image.new("1", (width * len(text), height))
    ImageDraw.Draw(page).text((0, 0), text, fill=1, font=ImageFont.load_default_imagefont())
    return np.asarray(page).astype(np.uint8)
