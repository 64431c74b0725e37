"""What a training step holds in memory, before anything is trained: the step is gone through without numbers, and every
storage is booked from its first use to its last.

Counted is what torch allocates for tensors, for one process; not its context, the allocator's fragments, the workspace of a
kernel, nor a frozen encoder. One of several processes keeps all gradients in the buckets of their exchange. Where `runtime.shard` divides a run, a process keeps its slices, and beside them what is whole for a
while: two blocks, the one that runs and the one that is fetched, with their gradients and the buffers of an exchange, and what is
outside of blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.assembly.build import backbone_config, build_method, empty_view, seen_encoders
from harness.backbone.sit import SiT
from harness.config.spec import RunSpec
from harness.costs.meter import Meter
from harness.data.open import outlined
from harness.data.parts import weights_of
from harness.flow.batch import Batch
from harness.flow.student import Student
from harness.runtime.random_streams import Streams


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process."""

    weights: int
    """Backbone and the method's own modules, float32."""
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    ema: int
    activations: int
    """At most, on top of weights, optimizer and EMA: what the forward pass keeps, or gradients and what is left of it."""

    @property
    def peak(self) -> int:
        return self.weights + self.optimizer + self.ema + self.activations

    def as_json(self) -> dict[str, int]:
        return asdict(self) | {"peak": self.peak}


class Ledger(TorchDispatchMode):
    """Bytes of all storages that operators have made and that are still alive, and the most there were; those of `given` are
    not booked, whatever views there are of them."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._book(leaf.untyped_storage())
        return out

    def _book(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) in self._known:
            return
        self._known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def footprint(spec: RunSpec, processes: int = 1) -> Footprint:
    """Of a run's step, its batch shared by some processes; `train.accumulate`, `runtime.checkpoint_activations` and
    `runtime.shard` count."""
    size = spec.train.batch_size // (processes * spec.train.accumulate)
    dataset = outlined(spec.data)
    backbone, encoders = backbone_config(spec, dataset), seen_encoders(spec, dataset)
    dims = [encoder.dim for encoder in encoders]
    with FakeTensorMode(allow_non_fake_inputs=True):
        method = build_method(spec, backbone, dims, weights_of(dataset, spec.data))
        backbone = method.setting.backbone
        model, ema = SiT(backbone), SiT(backbone).requires_grad_(False)
        model.checkpoint_activations = spec.runtime.checkpoint_activations
        if spec.runtime.device != "cpu":
            for block in (*model.blocks, *ema.blocks):
                block.attn.fused = True
        slices = processes if spec.runtime.shard else 1
        parameters = [*model.parameters(), *method.parameters()]
        learned = _bytes(parameters, slices)
        fixed = {
            "weights": learned,
            "gradients": learned,
            "optimizer": 2 * learned,
            "ema": _bytes(ema.parameters(), slices),
        }
        kept: list[Tensor] = []
        for parameter in parameters if processes > 1 else ():
            parameter.register_post_accumulate_grad_hook(partial(_exchanged, slices, kept))
        student = Student(model, ema, backbone, Meter(lambda: 0, lambda start, end: 0).phase)
        peak = _peak(spec, method, student, size, encoders)
        if slices > 1:
            peak = _divided(peak, learned, model, method)
        elif processes > 1:
            peak += learned  # the buckets that gradients are exchanged in, for good
        return Footprint(**fixed, activations=peak)


def _exchanged(slices: int, kept: list[Tensor], parameter: Tensor) -> None:
    """A gradient as soon as it is summed over processes: a slice of it is kept, or it lies in a bucket of the exchange."""
    parameter.grad = None
    if slices > 1:
        kept.append(torch.empty(_rows(parameter, slices), *parameter.shape[1:]))


def _divided(peak: int, gradients: int, model: SiT, method: nn.Module) -> int:
    """The most that a process holds where a run is divided, of the peak without what is whole for a while: where activations
    are most, what is outside of blocks and two blocks; at the end of the backward pass also their gradients, and one block
    and its gradients on their way between processes."""
    blocks = [_bytes(block.parameters()) for block in model.blocks]
    outside = _bytes([*model.parameters(), *method.parameters()]) - sum(blocks)
    return outside + max(peak + 2 * max(blocks), gradients + 6 * max(blocks))


def _rows(parameter: Tensor, slices: int) -> int:
    """Of the first process's slice, the largest."""
    return -(-parameter.shape[0] // slices)


def _peak(spec: RunSpec, method: nn.Module, student: Student, size: int, encoders: Sequence[Any]) -> int:
    """The most that a micro-batch holds on top of weights, optimizer and EMA."""
    labels = torch.zeros(size, dtype=torch.int64)
    x0 = torch.zeros(size, *method.setting.backbone.x_shape)
    views = (
        tuple(empty_view(e, size, method, x0.device) for e in encoders) if method.config.encodes(1) else ()
    )
    batch = Batch(np.arange(size), x0, labels, labels, views=views)
    draw = method.draw(Streams(0), batch)
    modules = student.model, student.ema, method
    given = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    with Ledger(given) as ledger:
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.train.precision == "bfloat16"):
            total = method.loss(student, batch, draw).total
        total.backward()
    return ledger.peak


def _bytes(parameters: Iterable[Tensor], slices: int = 1) -> int:
    """Of the largest slice of each."""
    return sum(_rows(p, slices) * p[:1].numel() * p.element_size() for p in parameters)
