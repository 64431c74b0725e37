"""Generated images of coloured digits with captions. Their objects, colours, counts and places are known.

A scene has one or two groups of equal digits on a black canvas of 2 x 2 cells. Its truth is drawn first. The
picture and the captions are rendered from it, so a picture can be compared with what its caption asks for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from harness.config.data_spec import DataSpec
from harness.data.dataset import Sample
from harness.data.generated.digits import read_digits
from harness.runtime.random_streams import Streams
from metrics.domain.geneval import TASKS

T = TypeVar("T")
SIDE, CELL, SAMPLES = 32, 16, 5000
DRAWS = 24
"""Uniform numbers of a sample, enough for the largest scene; the last one decides the number of captions."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (255, 48, 48),
    "green": (48, 224, 64),
    "blue": (64, 96, 255),
    "yellow": (255, 224, 32),
    "purple": (208, 64, 240),
    "white": (255, 255, 255),
}
SIZES = {"small": 8, "large": 14}
"""Side of a digit in pixels."""
RELATIONS = {
    "left of": ("right of", (0, 2), (1, 3)),
    "right of": ("left of", (1, 3), (0, 2)),
    "above": ("below", (0, 1), (2, 3)),
    "below": ("above", (2, 3), (0, 1)),
}
"""Relation of the first group to the second -> the converse, and the cells of both, numbered row by row."""
PLACES = {
    1: {"top left": (0,), "top right": (1,), "bottom left": (2,), "bottom right": (3,)},
    2: {"top": (0, 1), "bottom": (2, 3), "left": (0, 2), "right": (1, 3)},
    3: {"": (0, 1, 2, 3)},
}
"""Number of digits of the only group -> its possible places, and the cells of each."""


@dataclass(frozen=True)
class Group:
    """Equal digits: `count` times the class `digit` in one colour and one size."""

    digit: int
    colour: str
    size: str
    count: int


class Object(NamedTuple):
    """One digit of a scene; its upper left corner is at (row, column), in pixels."""

    digit: int
    colour: str
    size: str
    row: int
    column: int
    group: int
    """The number of its group, 0 or 1."""


@dataclass(frozen=True)
class Truth:
    """The known facts about a scene."""

    groups: tuple[Group, ...]
    objects: tuple[Object, ...]
    relation: str
    """Relation of the first group to the second, a key of `RELATIONS`; empty for one group."""
    place: str
    """Place of the only group, for example `top left`; empty for two groups and for three digits."""

    @property
    def count(self) -> int:
        """Number of digits."""
        return len(self.objects)


class Prompts:
    """Prompts: colour images of 32x32 with one to three digits, and one to three captions each.

    There are 5,000 samples. The label is colour and digit of the first object, row by row, for example `red
    seven`. The first caption is the most detailed one: it has every attribute. A second one has the same in
    other words, a third one only digits and colours. `captions(index)` and `truth(index)` belong to the
    picture of that index.
    """

    modality = "image"
    reads = ()
    class_names = tuple(f"{colour} {number}" for colour in COLOURS for number in NUMBERS)
    classes = len(class_names)
    label_source = "the first object, row by row"
    caption_source = "generated"
    states = ("object", "colour", "count", "position", "binding", *TASKS)
    shape = (3, SIDE, SIDE)

    def __init__(self, spec: DataSpec) -> None:
        drawn = Streams(0).uniform("data/prompts", range(SAMPLES), (DRAWS,)).numpy()
        draws = [Draws(row) for row in drawn]
        self._truths = [scene(choices) for choices in draws]
        self._number = (drawn[:, -1] * 3).astype(int) + 1
        handwriting = Handwriting()
        self._pixels = np.stack(
            [handwriting.draw(truth, choices) for truth, choices in zip(self._truths, draws, strict=True)]
        )
        content = hashlib.sha256(self._pixels.tobytes())
        content.update("\n".join("\t".join(self.captions(i)) for i in range(SAMPLES)).encode())
        self.fingerprint = content.hexdigest()[:16]

    def __len__(self) -> int:
        return SAMPLES

    def sample(self, index: int) -> Sample:
        return Sample(self._pixels[index], self.label(index))

    def label(self, index: int) -> int:
        first = min(self._truths[index].objects, key=lambda thing: (thing.row // CELL, thing.column // CELL))
        return self.class_names.index(f"{first.colour} {NUMBERS[first.digit]}")

    def key(self, index: int) -> bytes:
        return self._pixels[index].tobytes()

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions of a picture, the most detailed one first."""
        return described(self._truths[index])[: self._number[index]]

    def truth(self, index: int) -> Truth:
        return self._truths[index]

    def caption_attributes(self, index: int) -> tuple[str, ...]:
        """Return the number of digits and, of two groups, their relation, for example `left_of`."""
        truth = self._truths[index]
        number = f"{NUMBERS[truth.count]}_digit{'' if truth.count == 1 else 's'}"
        return (number, truth.relation.replace(" ", "_")) if truth.relation else (number,)


class Draws:
    """Choices made one after the other from the uniform numbers of a sample."""

    def __init__(self, uniform: np.ndarray) -> None:
        self._left = iter(uniform.tolist())

    def below(self, number: int) -> int:
        """Return an integer from 0 to `number` - 1."""
        return int(next(self._left) * number)

    def choice(self, among: Sequence[T]) -> T:
        """Return one element."""
        return among[self.below(len(among))]


class Handwriting:
    """The handwritten digits in both sizes, by class."""

    def __init__(self) -> None:
        values, labels = read_digits()
        pixels = values.reshape(-1, 8, 8).astype(np.int64)
        self._of_size = {name: enlarged(pixels, side) for name, side in SIZES.items()}
        self._of_class = [np.flatnonzero(labels == digit).tolist() for digit in range(len(NUMBERS))]

    def draw(self, truth: Truth, draws: Draws) -> np.ndarray:
        """Return the picture of a scene, uint8 (3, SIDE, SIDE), each digit in a hand of its class."""
        picture = np.zeros((3, SIDE, SIDE), np.int64)
        for thing in truth.objects:
            ink = self._of_size[thing.size][draws.choice(self._of_class[thing.digit])]
            side, colour = SIZES[thing.size], np.array(COLOURS[thing.colour])[:, None, None]
            picture[:, thing.row : thing.row + side, thing.column : thing.column + side] = ink * colour // 255
        return picture.astype(np.uint8)


def enlarged(images: np.ndarray, side: int) -> np.ndarray:
    """Resize images, integers (N, 8, 8) from 0 to 16, to `side` bilinearly; return integers up to 255.

    All arithmetic is in integers, so that the pixels are the same on every machine.
    """
    weights = np.zeros((side, 8), np.int64)
    for place in range(side):
        # The centre of an output pixel, in units of 1 / (2 side) input pixels.
        centre = min(max((2 * place + 1) * 8 - side, 0), 7 * 2 * side)
        below, rest = divmod(centre, 2 * side)
        weights[place, below] += 2 * side - rest
        weights[place, min(below + 1, 7)] += rest
    return np.einsum("yi,nij,xj->nyx", weights, images, weights) * 255 // (16 * (2 * side) ** 2)


def scene(draws: Draws) -> Truth:
    """Draw the groups of a scene, their relation or place, and the position of every digit."""
    count = 1 + draws.below(3)
    if count == 1 or draws.below(3) == 0:
        place = draws.choice(list(PLACES[count]))
        groups = (_group(draws, count),)
        return Truth(groups, _placed(draws, groups, [PLACES[count][place]]), "", place)
    first = 1 + draws.below(count - 1)
    groups = _group(draws, first), _group(draws, count - first)
    if groups[0] == replace(groups[1], count=first):
        # Equal groups would look like one group.
        groups = groups[0], replace(groups[1], colour=_next_colour(groups[1].colour))
    relation = draws.choice(list(RELATIONS))
    return Truth(groups, _placed(draws, groups, RELATIONS[relation][1:]), relation, "")


def described(truth: Truth) -> tuple[str, str, str]:
    """Return three captions of a scene: every attribute, the same in other words, digits and colours."""
    first, *others = truth.groups
    if not others:
        where = _where(truth)
        full = _phrase(first)
        turned = f"{where}, {full}" if where else f"a picture of {full}"
        return f"{full} {where}".strip(), turned, _short(first)
    second, converse = others[0], RELATIONS[truth.relation][0]
    return (
        f"{_phrase(first)} {truth.relation} {_phrase(second)}",
        f"a picture of {_phrase(second)} {converse} {_phrase(first)}",
        f"{_short(first)} and {_short(second)}",
    )


def _group(draws: Draws, count: int) -> Group:
    digit = draws.below(len(NUMBERS))
    return Group(digit, draws.choice(list(COLOURS)), draws.choice(list(SIZES)), count)


def _next_colour(colour: str) -> str:
    names = list(COLOURS)
    return names[(names.index(colour) + 1) % len(names)]


def _placed(draws: Draws, groups: Sequence[Group], cells: Sequence[tuple[int, ...]]) -> tuple[Object, ...]:
    """Draw a cell of its group, and a position in the cell, for every digit."""
    objects = []
    for number, (group, free) in enumerate(zip(groups, map(list, cells), strict=True)):
        room = CELL - SIZES[group.size] + 1
        for _ in range(group.count):
            row, column = divmod(free.pop(draws.below(len(free))), 2)
            position = CELL * row + draws.below(room), CELL * column + draws.below(room)
            objects.append(Object(group.digit, group.colour, group.size, *position, number))
    return tuple(objects)


def _phrase(group: Group) -> str:
    """Return a group in words with every attribute, for example `two large blue ones`."""
    number = "a" if group.count == 1 else NUMBERS[group.count]
    return f"{number} {group.size} {group.colour} {_noun(group)}"


def _short(group: Group) -> str:
    """Return a group in words without size and number, for example `blue ones`."""
    return f"{'a ' if group.count == 1 else ''}{group.colour} {_noun(group)}"


def _noun(group: Group) -> str:
    name = NUMBERS[group.digit]
    plural = f"{name}es" if name == "six" else f"{name}s"
    return name if group.count == 1 else plural


def _where(truth: Truth) -> str:
    """Return the place of the only group in words, for example `in the top left`; empty for no place."""
    if not truth.place:
        return ""
    inside = " " in truth.place
    return f"{'in' if inside else 'on' if truth.place in ('left', 'right') else 'at'} the {truth.place}"
