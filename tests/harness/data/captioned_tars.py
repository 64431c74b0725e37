"""Members of tar files with captions, and what is read of them."""

from __future__ import annotations

from tests.harness.data.pictures import pixels, png

TEXTS = ["a cat", "ein Hund\n\n a dog \n", "家", "", None, "a fox"]
READ = [("a cat",), ("ein Hund", "a dog"), ("家",), ("",), (), ("a fox",)]
"""The captions that are read of these texts."""


def members(ending: str, contents: list[bytes | None], start: int = 0) -> list[tuple[str, bytes]]:
    """Return KEY.png of each sample, and a second member where it has content."""
    found: list[tuple[str, bytes]] = []
    for number, (image, content) in enumerate(zip(pixels(), contents, strict=False), start):
        found.append((f"{number:05d}.png", png(image)))
        found += [(f"{number:05d}.{ending}", content)] if content is not None else []
    return found


def texts(values: list[str | None] = TEXTS) -> list[bytes | None]:
    return [None if value is None else value.encode() for value in values]
