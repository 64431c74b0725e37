"""Latents of other code that `data.root` names: imported into the cache on first use, by the same checks.

Records that are stored uncompressed in zip or safetensors files stay where they are, and the cache has their
positions. Others are copied bit for bit, because training reads them at random. Nothing is written next to
them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import torch

from harness.config.data_spec import DataSpec
from harness.data.disk.labels import NONE
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked
from harness.files.parse import parse_json
from harness.files.progress import progress_bar
from harness.files.stamps import TICK_NS, files_stamp, is_doubtful, tree_stamp
from harness.latents.encode import BEGUN, encode
from harness.latents.import_plan import NONE as NO_IMAGES
from harness.latents.import_plan import Choices, plan_import, recognised
from harness.latents.import_report import found_lines
from harness.latents.importing import Importing, check_codec
from harness.latents.layouts.source import files_of
from harness.latents.linked import can_link
from harness.latents.shards import MANIFEST, SHARD
from harness.runtime.distributed import World
from metrics.value import MetricError

RULES = 1
"""Version of the imports in the cache: increase it when they change."""
SETTLING = 50
"""Attempts to find a folder in which nothing has changed for a moment."""
FIELDS = re.compile(r"--(codec|images|resolution|classes)( ?)")
"""Options of the import that are fields of `data` too."""

UNLABELLED = f"data.label_key={NONE}"


def is_foreign(root: Path) -> bool:
    """Return whether a path holds latents of other code in a layout that can be imported."""
    if not root.exists() or (root / MANIFEST).is_file() or (root / BEGUN).is_file():
        return False
    try:
        return recognised(root) is not None
    except (OSError, UserError, MetricError):
        # Opening it states what is wrong.
        return False


def moments_folder(root: Path, spec: DataSpec) -> Path:
    """Return the folder of moments of a root: the root itself, or its import in the cache.

    A changed source is imported again. Raises `UserError` for latents that need choices that a spec has not.
    """
    if not is_foreign(root):
        return root
    folder = cache_dir("imported") / key_of_import(root, spec)
    # One rank of a run imports while this lock holds back the others.
    with locked(folder):
        if not (folder / MANIFEST).is_file():
            _import(root, spec, folder)
    return folder


def _import(root: Path, spec: DataSpec, folder: Path) -> None:
    """Import a root into a folder of the cache, and state on standard error what was found."""
    world = World(0, 1, torch.device("cpu"))
    try:
        job = plan_import(root, _choices(spec), world.device)
        job = replace(job, link=can_link(job.source.records))
        difference = check_codec(job, world.device)
        _check_room(job, folder)
        for line in (*found_lines(job, difference), _stated(job, folder), *_superseded(root, folder)):
            click.echo(line.replace("--no-labels", UNLABELLED), err=True)
        with progress_bar(len(job.source), f"importing {root}") as advance:
            encode(job, folder, world, advance)
    except UserError as error:
        raise UserError(_in_fields(str(error), root)) from error


def _choices(spec: DataSpec) -> Choices:
    """Return the choices of an import that the fields of a spec make."""
    family = spec.codec.partition("@")[0]
    return Choices(
        codec=f"{family}:{spec.codec_weights}" if family else "",
        images=spec.images,
        resolution=spec.resolution,
        classes=spec.classes,
        labelled=spec.label_key != NONE,
    )


def key_of_import(root: Path, spec: DataSpec) -> str:
    """Return a hash over the files of a root and all that the import depends on."""
    chosen = [spec.codec, _images(spec), spec.resolution, spec.classes, spec.label_key]
    if spec.codec_weights and "@" not in spec.codec:
        # The digits after the @ identify the weights; without them their files do.
        weights = Path(spec.codec_weights).expanduser().resolve()
        chosen += [str(weights), tree_stamp(weights)]
    content = json.dumps([RULES, str(root.resolve()), _settled(root.absolute(), spec), *chosen])
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]


def _images(spec: DataSpec) -> str:
    """Return the location of the images of a spec; empty, or `none`, without one."""
    if spec.images in ("", NO_IMAGES):
        return spec.images
    return str(Path(spec.images).expanduser().resolve())


def _read(root: Path, spec: DataSpec) -> Iterator[Path]:
    """Yield the files that an import reads: those of the layout, and the images that a spec names."""
    layout, images = recognised(root), _images(spec)
    yield from layout.files(root) if layout else files_of(root)
    if images not in ("", NO_IMAGES):
        yield from files_of(Path(images))


def _settled(root: Path, spec: DataSpec) -> str:
    """Return the stamp of the files that are read, whose last change is long enough ago to rely on it."""
    for _ in range(SETTLING):
        try:
            found = files_stamp(_read(root, spec), root)
        except UserError as error:
            raise UserError(_in_fields(str(error), root)) from error
        except MetricError as error:
            raise UserError(str(error)) from error
        if found is not None and not is_doubtful(found[1]):
            return found[0]
        time.sleep(TICK_NS / 1e9)
    raise UserError(f"data.root = {root} changes all the time; wait until it is complete")


def _check_room(job: Importing, folder: Path) -> None:
    """Raise `UserError` if the disk of the cache has no room for a copy, or for the rest of one."""
    needed = len(job.source) * math.prod(job.record) * job.dtype.itemsize
    # An interrupted import left complete shards, and a part of another one that is overwritten.
    needed -= sum(file.stat().st_size for file in folder.glob(f"*{SHARD}*.npy*"))
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise UserError(
            f"{job.source.root} needs {needed / 1e9:.1f} GB in the cache {folder.parent}, which has "
            f"{free / 1e9:.1f} GB left; set FLOWRACE_CACHE to another disk"
        )


def _stated(job: Importing, folder: Path) -> str:
    """Return where training reads the latents."""
    if job.link:
        return f"the latents stay where they are; their positions are in {folder}"
    return f"the latents are copied bit for bit into {folder}"


def _superseded(root: Path, folder: Path) -> Iterator[str]:
    """Yield a line for each complete import of a root that was made from other files or choices."""
    for manifest in sorted(folder.parent.glob(f"*/{MANIFEST}")):
        try:
            imported = parse_json(manifest.read_bytes())["imported"]["root"]
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if imported == str(root.resolve()):
            yield f"an earlier import of {root} is in {manifest.parent}; remove it if no run reads it"


def _in_fields(message: str, root: Path) -> str:
    """Return the message of an import in terms of the fields of a spec."""
    text = message.replace("import with --no-labels", f"set {UNLABELLED}")
    text = text.replace(f"SOURCE {root}", f"data.root = {root}")
    text = FIELDS.sub(lambda found: f"data.{found[1]}{'=' if found[2] else ''}", text)
    if " --" in text:
        text += f"; these are options of flowrace data import {root} --out DIR, then set data.root=DIR"
    return text
