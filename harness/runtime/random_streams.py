"""Random streams: every draw is a pure function of seed, stream name and global sample index, on the CPU.

A stream is a counter-based generator (Philox 4x64), whose key is a hash of seed and name and whose counter
holds the index. So a draw depends neither on earlier draws, nor on the number of processes, nor on other
streams.

    data         order, label_drop, flip, modality, caption, posterior (of latents)
    networks     init/<parameter>, encoder/..., probe/...
    methods      noise, token_noise, time, second_time, token_time, mask, whole, teacher_offset, route,
                 projections (by step), feature_noise, given_noise; for each time also .../audio, .../late
                 and .../is_late
    evaluation   eval_noise, eval_label, eval_caption, sde_noise/<step>; with an extra token also .../extra,
                 with further channels .../features; held_out_noise, held_out_posterior (of latents)
    data sets    data/... (the generated ones, always with seed 0)
    tasks        environment/... (starts, always with seed 0), rollout_noise/<plan>, random_actions/<step>
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
        """Return standard normal draws, (len(indices), *shape)."""
        return self._rows(name, indices, shape, lambda g, out: g.standard_normal(out=out, dtype=np.float32))

    def uniform(self, name: str, indices: Sequence[int] | np.ndarray, shape: Sequence[int] = ()) -> Tensor:
        """Return uniform draws from [0, 1), (len(indices), *shape)."""
        return self._rows(name, indices, shape, lambda g, out: g.random(out=out, dtype=np.float32))

    def integers(self, name: str, indices: Sequence[int] | np.ndarray, high: int) -> Tensor:
        """Return one integer in [0, high) for each index, int64."""
        drawn = [self._at(name, int(index)).integers(high) for index in indices]
        return torch.tensor(drawn, dtype=torch.int64)

    def permutation(self, name: str, index: int, size: int) -> np.ndarray:
        """Return a permutation of range(size), for example the order of epoch `index`."""
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
        """Return the stream's generator, set to the block of 2^128 values that belongs to this index."""
        if name not in self._generators:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:16]
            key = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
            self._generators[name] = np.random.Generator(np.random.Philox(key=key))
        generator = self._generators[name]
        # numpy types the state as a read-only mapping, although it is a dictionary that can be set again.
        state = cast(dict[str, Any], generator.bit_generator.state)
        state["state"]["counter"][:] = (0, 0, index, 0)
        # No values may remain in the buffer from the previous index.
        state["buffer_pos"], state["has_uint32"] = 4, 0
        generator.bit_generator.state = state
        return generator
