"""Sample grids for the page: every picture from the same latents, arms side by side at equal steps."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from harness.errors import UserError
from harness.files.parse import parse_json
from harness.files.pictures import BROKEN, FORMATS, LARGEST, check_pixels
from reports.race.race import Race

WIDEST = 480
"""The maximum width of a picture in pixels; larger grids become thumbnails."""
MOST_STEPS = 5
MOST_CAPTIONS = 100
BUDGET = 600_000
"""The maximum size of all pictures in characters. Many arms make the pictures smaller, then fewer."""
SHAPES = ((WIDEST, MOST_STEPS), (320, 5), (240, 5), (240, 3), (160, 3), (160, 2), (96, 2))
"""Widths in pixels and numbers of steps to choose from, the best first."""


@dataclass(frozen=True)
class Samples:
    """Pictures of one seed as data URIs: one row for each step, one column for each arm of `labels`."""

    seed: int
    labels: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    captions: tuple[str, ...] = ()
    """Captions of the samples of a picture, in the order of the picture; empty for labels."""


def samples_of(race: Race) -> Samples | None:
    """Return the grids of the first seed that all arms share, at the steps at which every arm has one.

    None without such a seed and step.
    """
    seeds = [set(arm.runs) for arm in race.arms]
    shared = sorted(set.intersection(*seeds))
    for seed in shared:
        folders = [arm.runs[seed].path / "samples" for arm in race.arms]
        steps = sorted(set.intersection(*({_step(file) for file in _grids(folder)} for folder in folders)))
        if steps:
            labels, rows = tuple(arm.label for arm in race.arms), _rows(folders, steps)
            return Samples(seed, labels, rows, _captions([_grid(folder, steps[-1]) for folder in folders]))
    return None


def _captions(grids: Sequence[Path]) -> tuple[str, ...]:
    """Return the captions that all pictures hold; nothing if they differ or are missing."""
    found = {_text(file) for file in grids}
    return found.pop() if len(found) == 1 else ()


def _text(file: Path) -> tuple[str, ...]:
    """Return the captions in the text chunk of a picture (harness/evaluation/sample_grid.py)."""
    try:
        with Image.open(file, formats=FORMATS) as picture:
            check_pixels(picture)
            picture.load()
            captions = parse_json(picture.info.get("captions", "[]"))
    except (Image.DecompressionBombError, *BROKEN):
        return ()
    if not isinstance(captions, list):
        return ()
    return tuple(caption for caption in captions[:MOST_CAPTIONS] if isinstance(caption, str))


def _rows(folders: Sequence[Path], steps: Sequence[int]) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """Return the largest choice of pictures within the budget, or the smallest one if none is."""
    rows: list[tuple[int, tuple[str, ...]]] = []
    for widest, most in SHAPES:
        rows, used = [], 0
        for step in spread(steps, most):
            rows.append((step, tuple(_uri(_grid(folder, step), widest) for folder in folders)))
            used += sum(map(len, rows[-1][1]))
            if used > BUDGET:
                break
        else:
            break
    return tuple(rows)


def spread(steps: Sequence[int], most: int = MOST_STEPS) -> list[int]:
    """Return at most `most` of these ascending steps: the first, the last, and between them steps that
    approximate a geometric progression."""
    if len(steps) <= most:
        return list(steps)
    ratio = (steps[-1] / steps[0]) ** (1 / (most - 1))
    return sorted({min(steps, key=lambda s: abs(s - steps[0] * ratio**i)) for i in range(most)})


def _grids(folder: Path) -> list[Path]:
    return [file for file in folder.glob("step-*.png") if file.stem.removeprefix("step-").isdecimal()]


def _grid(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.png"


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def _uri(file: Path, widest: int) -> str:
    """Return a picture as a data URI: PNG, or a JPEG thumbnail if it is wider than `widest`."""
    content = file.read_bytes()
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        check_pixels(picture)
        picture.load()
    except Image.DecompressionBombError as error:
        raise UserError(f"{file} has more than {LARGEST:,} pixels; remove it") from error
    except BROKEN as error:
        raise UserError(f"{file} is not an image: {error}; remove it") from error
    kind, buffer = "png", io.BytesIO()
    if picture.width > widest:
        kind = "jpeg"
        picture = picture.convert("RGB")
        picture.thumbnail((widest, 4 * widest), Image.Resampling.LANCZOS)
        picture.save(buffer, "jpeg", quality=85)
        content = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
