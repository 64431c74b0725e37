"""The doors of containers, of latents of other code, and of captions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from harness.config.data_spec import DataSpec
from harness.data.dataset import Capabilities
from harness.data.found import found_in
from harness.data.open import open_dataset
from harness.latents.layouts.lightningdit import read_statistics
from tests.fuzz.data_doors import from_dataset
from tests.fuzz.door import Door, Files, command
from tests.fuzz.guards import CACHE
from tests.harness.data.containers import tar_of
from tests.harness.data.pictures import opened, pixels, png
from tests.harness.data.test_captions import csv_of
from tests.harness.data.test_containers import WRITERS
from tests.harness.latents.test_import_layouts import SOURCES
from tests.support.latent_layouts import import_data, moments, repa_files, write

SIDE = ("--resolution", "32")
SCALES = {"lightningdit": "0.4"}


def written(make: Callable[[Path], Path]) -> Files:
    """Return the files that a function writes to a path."""
    with tempfile.TemporaryDirectory(prefix="seeds") as name:
        root = make(Path(name) / "source")
        files = [root] if root.is_file() else [file for file in root.rglob("*") if file.is_file()]
        base = root.parent if root.is_file() else root
        return {str(file.relative_to(base)): file.read_bytes() for file in files}


# Containers of images.
def from_zip(folder: Path) -> Iterable[float]:
    return from_dataset("zip", folder / "source.zip")


def from_tar_members(folder: Path) -> Iterable[float]:
    """Read a tar file of the files of a folder, with their captions."""
    members = [(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]
    root = tar_of(folder.parent / CACHE / "made" / "a.tar", members).parent
    return with_captions("webdataset", root)


def with_captions(kind: str, root: Path) -> list[float]:
    """Open a data set with captions; return the length of each."""
    data = opened(kind, root, caption_key="usual")
    found_in(data).line(), found_in(data).row()
    # Tar files whose captions are only counted have none.
    captions = Capabilities(data).captions or (lambda _: ())
    texts = [text for index in range(len(data)) for text in captions(index)]
    # What an encoder is given, and the record.
    return [float(len(text.encode())) for text in texts] + [float(len(json.dumps(texts)))]


def members() -> Files:
    found = {}
    for number, image in enumerate(pixels()[:3]):
        row = {"caption": ["a cat", "ein Hund"], "width": 8}
        found |= {
            f"{number}.png": png(image),
            f"{number}.cls": b"1",
            f"{number}.txt": "a cat\n家\n".encode(),
            f"{number}.json": json.dumps(row).encode(),
        }
    return found


def texts() -> Files:
    found = {f"{number}.png": png(image) for number, image in enumerate(pixels()[:3])}
    return found | {"0.txt": b"a cat\n\nein Hund\n", "1.txt": b"", "2.txt": "家".encode()}


def table() -> Files:
    names = [f"{number}.png" for number in range(3)]
    images = dict(zip(names, map(png, pixels()), strict=False))
    return images | {"metadata.csv": csv_of(names, ["a cat", "", "a, b"]).encode()}


def rows() -> Files:
    lines = [{"file_name": f"{n}.png", "text": ["a cat", "b"] if n else "c"} for n in range(3)]
    images = {f"{number}.png": png(image) for number, image in enumerate(pixels()[:3])}
    return images | {"metadata.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}


# Latents.
def latents(layout: str) -> Files:
    if layout == "repa":
        return repa_files(moments(12)[:, 0], (0, 1, 2) * 4)
    return written(lambda root: SOURCES[layout](root))


def from_layout(layout: str, folder: Path) -> Iterable[float]:
    """Import latents, and read what was imported."""
    out = folder.parent / "out"
    scale = SCALES.get(layout, "0.2")
    command("data", "import", folder, "--out", out, "--layout", layout, *SIDE, "--scale", scale)
    return from_latents(out)


def imported() -> Files:
    def make(root: Path) -> Path:
        import_data(write(root / "source", repa_files(moments(12)[:, 0], (0, 1, 2) * 4)), root / "out", *SIDE)
        return root / "out"

    return written(make)


def from_latents(folder: Path) -> list[float]:
    data: Any = open_dataset(DataSpec(name="latents", root=str(folder)))
    found_in(data).line()
    return [float(data.sample(index).label) for index in range(min(len(data), 3))]


def statistics(root: Path) -> Path:
    import torch

    root.mkdir(parents=True)
    torch.save({"mean": torch.zeros(3), "std": torch.ones(3)}, root / "latents_stats.pt")
    return root


def from_latent_statistics(folder: Path) -> Iterable[float]:
    return [float(x) for part in read_statistics(folder / "latents_stats.pt") for x in part]


KINDS = tuple(kind for kind in WRITERS if kind != "zip")
CONTAINERS = (
    *(
        Door(
            f"{kind} container",
            partial(written, WRITERS[kind]),
            partial(from_dataset, kind),
            cases=10,
        )
        for kind in KINDS
    ),
    Door("zip container", partial(written, WRITERS["zip"]), from_zip, cases=10),
    Door(
        "index of mds",
        partial(written, WRITERS["mds"]),
        partial(from_dataset, "mds"),
        text=True,
        cases=15,
        only=("index.json",),
    ),
    Door(
        "state of arrow",
        partial(written, WRITERS["arrow"]),
        partial(from_dataset, "arrow"),
        text=True,
        cases=15,
        only=("state.json", "dataset_info.json"),
    ),
)
CAPTIONS = (
    Door("captions in tar files", members, from_tar_members, True, 15, (".txt", ".json", ".cls")),
    Door("captions of NAME.txt", texts, partial(with_captions, "folder"), True, 15, (".txt",)),
    Door("captions of metadata.csv", table, partial(with_captions, "folder"), True, 15, (".csv",)),
    Door("captions of metadata.jsonl", rows, partial(with_captions, "folder"), True, 15, (".jsonl",)),
)
LATENTS = (
    *(
        Door(f"latents of {layout}", partial(latents, layout), partial(from_layout, layout), cases=10)
        for layout in ("repa", *SOURCES)
    ),
    Door("labels of latents", partial(latents, "repa"), partial(from_layout, "repa"), True, 10, (".json",)),
    Door("latents", imported, from_latents, cases=10),
    Door("latents.json", imported, from_latents, True, 15, (".json",)),
    Door("statistics of latents", partial(written, statistics), from_latent_statistics, cases=15),
)
