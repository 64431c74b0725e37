"""The random streams: every draw is a pure function of (seed, stream name, global sample index), made on the
CPU.

A stream is a counter-based generator (Philox 4x64): the key is a hash of seed and name, the counter holds the
index. So no draw depends on how many draws came before it, on the number of processes, or on what another
stream is used for.

Streams in use: init/<parameter>, order, label_drop, flip, modality, posterior (of latents); noise, time,
second_time, token_time, mask, whole, teacher_offset, each time's .../audio, .../late and .../is_late;
eval_noise, eval_label, sde_noise/<step>; encoder/..., probe/...; data/... (the embedded data sets, always of
seed 0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor


class Streams:
    """All streams of one seed. Values are float32 on the CPU, one row for each index."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[str, np.random.Generator] = {}

    def normal(self, name: str, indices: Sequence[int] | np.ndarray, shape: Sequence[int] = ()) -> Tensor:
        """Standard normal draws, (len(indices), *shape)."""
        return self._rows(name, indices, shape, lambda g, out: g.standard_normal(out=out, dtype=np.float32))

    def uniform(self, name: str, indices: Sequence[int] | np.ndarray, shape: Sequence[int] = ()) -> Tensor:
        """Draws from [0, 1), (len(indices), *shape)."""
        return self._rows(name, indices, shape, lambda g, out: g.random(out=out, dtype=np.float32))

    def integers(self, name: str, indices: Sequence[int] | np.ndarray, high: int) -> Tensor:
        """One integer of [0, high) for each index, int64."""
        drawn = [self._at(name, int(index)).integers(high) for index in indices]
        return torch.tensor(drawn, dtype=torch.int64)

    def permutation(self, name: str, index: int, size: int) -> np.ndarray:
        """A permutation of range(size): the order of epoch `index`."""
        return self._at(name, index).permutation(size)

    def _rows(
        self,
        name: str,
        indices: Sequence[int] | np.ndarray,
        shape: Sequence[int],
        fill: Callable[[np.random.Generator, np.ndarray], object],
    ) -> Tensor:
        out = np.empty((len(indices), max(1, int(np.prod(shape)))), dtype=np.float32)
        for row, index in zip(out, indices, strict=True):
            fill(self._at(name, int(index)), row)
        return torch.from_numpy(out.reshape(len(indices), *shape))

    def _at(self, name: str, index: int) -> np.random.Generator:
        """The stream's generator, standing at the block of 2^128 values that belongs to this index."""
        if name not in self._generators:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:16]
            key = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
            self._generators[name] = np.random.Generator(np.random.Philox(key=key))
        generator = self._generators[name]
        # numpy types the state as a read-only mapping; it is a dictionary that the setter takes back.
        state = cast(dict[str, Any], generator.bit_generator.state)
        state["state"]["counter"][:] = (0, 0, index, 0)
        state["buffer_pos"], state["has_uint32"] = 4, 0  # nothing left over from the index before
        generator.bit_generator.state = state
        return generator
