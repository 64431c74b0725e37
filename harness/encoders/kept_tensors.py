"""Tensors that are computed once for all runs on one data set: weights of local encoders, and principal axes.

They are in the cache folder with their checksum, under a hash of all that they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.files.files import locked
from harness.records import checkpoint
from harness.records.checkpoint import Checkpoint

Made = tuple[Mapping[str, Tensor], Mapping[str, str]]
"""Tensors by name, and texts that are stored with them."""


# Any: what the tensors depend on, as JSON.
def kept_tensors(name: str, parts: Sequence[Any], make: Callable[[], Made]) -> Checkpoint:
    """Return the tensors from the cache, or make and store them if they are missing or damaged.

    The file has a name and a hash of `parts`. If two processes need it, one makes it and the other waits.
    """
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    file = cache_dir("encoders") / f"{name}-{key}.safetensors"
    with locked(file):
        try:
            return checkpoint.load(file)
        # The file is missing or damaged.
        except UserError:
            checkpoint.save(file, *make())
            return checkpoint.load(file)
