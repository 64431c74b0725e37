"""What a training step holds in memory, before anything is trained: the step is gone through without numbers, and every
storage is booked from its first use to its last.

Counted is what torch allocates for tensors, for one process; not its context, the allocator's fragments, the workspace of a
kernel, nor a frozen encoder; and a whole copy of everything, also where `runtime.shard` divides it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.backbone.sit import SiT
from harness.backbone.student import Student
from harness.batch import Batch
from harness.cost import Meter, backbone_config, build_method, empty_view, seen_encoders
from harness.data.base import outlined
from harness.data.parts import weights_of
from harness.draws import Streams
from harness.spec import RunSpec


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
    """Of a run's step, its batch shared by some processes; `train.accumulate` and `runtime.checkpoint_activations` count."""
    size = spec.train.batch_size // (processes * spec.train.accumulate)
    dataset = outlined(spec.data)
    backbone, encoders = backbone_config(spec, dataset), seen_encoders(spec, dataset)
    dims = [encoder.dim for encoder in encoders]
    with FakeTensorMode(allow_non_fake_inputs=True):
        method = build_method(spec, backbone, dims, weights_of(dataset, spec.data))
        backbone = method.setting.backbone
        model, ema = SiT(backbone), SiT(backbone).requires_grad_(False)
        model.checkpoint_activations = spec.runtime.checkpoint_activations
        learned = _bytes([*model.parameters(), *method.parameters()])
        fixed = {
            "weights": learned,
            "gradients": learned,
            "optimizer": 2 * learned,
            "ema": _bytes(ema.parameters()),
        }
        student = Student(model, ema, backbone, Meter(lambda: 0, lambda start, end: 0).phase)
        return Footprint(**fixed, activations=_peak(spec, method, student, size, encoders))


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


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)
