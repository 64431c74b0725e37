"""The reading of a step's separate gradients, over micro-batches and ranks, as a `gradients` event.

It repeats the passes of a step and changes nothing of the run: not a bit of weights, losses or draws. Its
seconds are booked on the phase `gradients`, and its FLOPs are recorded in its event. Neither is part of the
cost of training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.costs.flops import count_reading
from harness.flow.batch import Batch, Draw
from harness.flow.gradients import SeparateGradients, separate_gradients
from harness.runtime.distributed import World
from harness.train.state import Run

PHASE = "gradients"


@dataclass(frozen=True)
class GradientReading:
    """The reading of one step; tensors stay on the device until the record is written."""

    products: Tensor
    """(3, depth + 2) float32: <f, f>, <a, a> and <f, a> of both gradients, over the embeddings, each block,
    and the final layer."""
    scalars: Tensor
    names: tuple[str, ...]
    """The names of `scalars`: losses and features."""
    divided: bool
    """False if the total is the flow loss alone."""
    flops: int

    # Any: the fields of an event, which are JSON.
    def fields(self) -> dict[str, Any]:
        """Return the fields of the event; a number that is not finite or not defined is None."""
        flow, auxiliary, mixed = self.products.tolist()
        values = dict(zip(self.names, map(_finite, self.scalars.tolist()), strict=True))
        norms = {"flow": _finite(math.sqrt(sum(flow)))}
        found: dict[str, Any] = {"norms": norms}
        if self.divided:
            norms["auxiliary"] = _finite(math.sqrt(sum(auxiliary)))
            found |= _relation(sum(flow), sum(auxiliary), sum(mixed))
            last = max((place for place, square in enumerate(auxiliary) if square), default=0)
            reached = (sum(sums[: last + 1]) for sums in (flow, auxiliary, mixed))
            found["reached"] = {"blocks": min(last, len(flow) - 2), **_relation(*reached)}
        for kind in ("losses", "norm", "sameness"):
            prefix = f"{kind}/"
            found["features" if kind == "norm" else kind] = {
                name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)
            }
        return found | {"reading_flops": self.flops}


class GradientLog:
    """Reads the gradients of every `train.log_gradients_every`-th step; every rank uses it alike."""

    def __init__(self, run: Run, world: World, autocast: Callable[[], AbstractContextManager]) -> None:
        self._run, self._world, self._autocast = run, world, autocast
        self._parts: list[SeparateGradients] = []
        names = [name for name, weight in run.model.named_parameters() if weight.requires_grad]
        self._places = [place_of(name, run.model.config.size.depth) for name in names]

    def due(self, step: int) -> bool:
        """Return whether a step is read."""
        every = self._run.spec.train.log_gradients_every
        return bool(every) and step % every == 0

    def add(self, batch: Batch, draw: Draw) -> None:
        """Read a micro-batch at the weights before the step."""
        with self._run.meter.phase(PHASE):
            run = self._run
            self._parts.append(separate_gradients(run.method, run.student, batch, draw, self._autocast))
            if len(self._parts) > 1:
                # One sum at a time, so that memory does not grow with the number of micro-batches.
                self._parts = [_added(*self._parts)]

    def take(self, step: int) -> GradientReading | None:
        """Return the mean reading of the added micro-batches over all ranks; None if none was added."""
        if not self._parts:
            return None
        # Counted on the host, once; it is no work of the device.
        flops = count_reading(self._run.method, self._run.spec, step, self._run.encoders)
        with self._run.meter.phase(PHASE):
            (total,), self._parts = self._parts, []
            count = self._run.spec.train.accumulate
            named = {f"losses/{name}": value for name, value in total.losses.items()} | total.features
            scalars = torch.stack([value.float() for value in named.values()]) / count
            return GradientReading(
                self._products(total, count),
                self._world.mean(scalars),
                tuple(named),
                total.auxiliary is not None,
                flops,
            )

    def _products(self, total: SeparateGradients, count: int) -> Tensor:
        """Return the inner products of the mean gradients by place, (3, depth + 2)."""
        columns = []
        for place in range(self._run.model.config.size.depth + 2):
            chosen = [index for index, own in enumerate(self._places) if own == place]
            flow = self._mean([total.flow[index] for index in chosen], count)
            auxiliary = torch.zeros_like(flow)
            if total.auxiliary is not None:
                auxiliary = self._mean([total.auxiliary[index] for index in chosen], count)
            columns.append(torch.stack([flow @ flow, auxiliary @ auxiliary, flow @ auxiliary]))
        return torch.stack(columns, dim=1)

    def _mean(self, gradients: Sequence[Tensor], count: int) -> Tensor:
        """Return gradients as one float32 vector, averaged over micro-batches and ranks."""
        return self._world.mean(torch.cat([gradient.float().flatten() for gradient in gradients]) / count)


def place_of(name: str, depth: int) -> int | None:
    """Return the place of a parameter: 0 for embeddings, n for block n, depth + 1 for the final layer.

    A further final layer (`Needs.outputs`) has no place: like a projector, it only serves the second term.
    A fusion (`Needs.fused`) has that of the last block before it.

    >>> place_of("blocks.0.attn.qkv.weight", 4), place_of("t_embedder.mlp.0.bias", 4)
    (1, 0)
    >>> place_of("final_layer.linear.weight", 4)
    5
    >>> place_of("fusions.3.linear.weight", 4)
    3
    >>> place_of("final_layers.2.linear.weight", 4)
    """
    if name.startswith("final_layers."):
        return None
    if name.startswith("final_layer."):
        return depth + 1
    if fusion := re.match(r"fusions\.(\d+)\.", name):
        return int(fusion[1])
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else 0


def _added(one: SeparateGradients, other: SeparateGradients) -> SeparateGradients:
    auxiliary = None
    if one.auxiliary is not None and other.auxiliary is not None:
        auxiliary = [a.add_(b) for a, b in zip(one.auxiliary, other.auxiliary, strict=True)]
    return SeparateGradients(
        [a.add_(b) for a, b in zip(one.flow, other.flow, strict=True)],
        auxiliary,
        _sums(one.losses, other.losses),
        _sums(one.features, other.features),
    )


def _sums(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + other[name] for name, value in one.items()}


def _relation(flow: float, auxiliary: float, mixed: float) -> dict[str, float | None]:
    """Return share and cosine from the three inner products; None where they are not defined.

    >>> _relation(4.0, 4.0, -2.0), _relation(4.0, 4.0, math.nan)
    ({'share': 0.5, 'cosine': -0.5}, {'share': None, 'cosine': None})
    """
    # Python's min and max take a cosine that is no number for 1.
    if not all(map(math.isfinite, (flow, auxiliary, mixed))):
        return {"share": None, "cosine": None}
    f, a = math.sqrt(flow), math.sqrt(auxiliary)
    return {
        "share": a / (f + a) if f + a else None,
        "cosine": max(-1.0, min(1.0, mixed / (f * a))) if f * a else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
