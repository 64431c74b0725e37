"""Memory of a training step, estimated before training.

The step runs on fake tensors, and every storage is counted from its first use to its last. The count is what
PyTorch allocates for tensors in one process. It leaves out the CUDA context, fragmentation, kernel workspaces
and frozen encoders.

With several processes, every gradient also has a copy in the buckets of the all-reduce. In a sharded run
(`runtime.shard`) a rank keeps its shards and temporarily gathers two blocks, the current and the prefetched
one, with their gradients and communication buffers, and all weights outside of blocks.
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

from harness.assembly.build import (
    backbone_config,
    build_backbone,
    build_method,
    empty_view,
    encoder_architectures,
)
from harness.assembly.frozen import freeze
from harness.backbone.attention import Attends
from harness.backbone.network import Backbone
from harness.config.spec import RunSpec
from harness.costs.meter import Meter
from harness.costs.optimizer import kept_tensors
from harness.data.open import outlined
from harness.data.parts import weights_of
from harness.encoders.base import Architecture
from harness.flow.batch import Batch
from harness.flow.draws import draws_of
from harness.flow.gradients import separate_gradients
from harness.flow.method import TrainingMethod
from harness.flow.student import Student
from harness.runtime.random_streams import Streams


@dataclass(frozen=True)
class Footprint:
    """Memory of one process in bytes."""

    weights: int
    """Backbone and the method's modules, in float32."""
    gradients: int
    optimizer: int
    """Tensors of the optimizer, for AdamW two moments."""
    ema: int
    activations: int
    """Peak on top of weights, optimizer and EMA: activations, or gradients and the remaining activations."""

    @property
    def peak(self) -> int:
        """Peak of all tensors together."""
        return self.weights + self.optimizer + self.ema + self.activations

    def as_json(self) -> dict[str, int]:
        """Return all fields and the peak."""
        return asdict(self) | {"peak": self.peak}


class AllocationTracker(TorchDispatchMode):
    """Tracks the bytes of live storages that operators allocate, and their peak, without those of `given`."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    # Any: PyTorch's signature; operators take and return anything.
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
    """Return the memory of one process in a training step of a run.

    `train.accumulate`, `train.log_gradients_every`, `runtime.checkpoint_activations` and `runtime.shard` are
    taken into account. Of a method that ends at a step, the larger step counts: a routed one needs less.
    """
    size = spec.train.batch_size // (processes * spec.train.accumulate)
    dataset = outlined(spec.data)
    backbone, encoders = backbone_config(spec, dataset), encoder_architectures(spec, dataset)
    # Compiled code keeps the same tensors, and fake tensors gain nothing from compilation.
    runtime = spec.runtime.model_copy(update={"compile": False})
    with FakeTensorMode(allow_non_fake_inputs=True):
        dims = [encoder.dim for encoder in encoders]
        method = build_method(spec, backbone, dims, weights_of(dataset, spec.data))
        model = build_backbone(backbone, runtime)
        ema = build_backbone(backbone, runtime).requires_grad_(False)
        freeze(model, spec)
        if spec.runtime.device != "cpu":
            # The count runs on a CPU but describes the fused attention of a GPU.
            for module in (*model.modules(), *ema.modules()):
                if isinstance(module, Attends):
                    module.fused = True
        slices = processes if spec.runtime.shard else 1
        named = [*model.named_parameters(prefix="model"), *method.named_parameters(prefix="method")]
        trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        gradients = _bytes((parameter for _, parameter in trained), slices)
        fixed = {
            "weights": _bytes((parameter for _, parameter in named), slices),
            "gradients": gradients,
            "optimizer": _bytes(
                (p for name, p in trained for _ in range(kept_tensors(spec.optimizer, name, p))), slices
            ),
            "ema": _bytes(ema.parameters(), slices),
        }
        kept: list[Tensor] = []
        for _, parameter in trained if processes > 1 else ():
            parameter.register_post_accumulate_grad_hook(partial(_exchanged, slices, kept))
        student = Student(model, ema, backbone, Meter(lambda: 0, lambda start, end: 0).phase)
        until = spec.method.until
        # Steps after `until` may need more, for example without a route.
        steps = [1] if until is None or until >= spec.train.steps else [1, until + 1]
        activations = max(_peak(spec, method, student, size, encoders, step) for step in steps)
        if slices > 1:
            # With recomputed activations autocast's copies are gone before the peak of the backward pass.
            half = spec.train.precision == "bfloat16" and not spec.runtime.checkpoint_activations
            activations = _sharded_peak(activations, gradients, model, method, half=half)
        elif processes > 1:
            # The buckets of the all-reduce are kept from the first step to the last.
            activations += gradients
        return Footprint(**fixed, activations=activations)


def _exchanged(slices: int, kept: list[Tensor], parameter: Tensor) -> None:
    """Free a gradient once it is summed over ranks: only its shard, or its copy in a bucket, is kept."""
    parameter.grad = None
    if slices > 1:
        kept.append(torch.empty(_rows(parameter, slices), *parameter.shape[1:]))


def _sharded_peak(peak: int, gradients: int, model: Backbone, method: nn.Module, *, half: bool) -> int:
    """Return the peak per rank of a sharded run, from the peak without temporarily gathered tensors.

    When activations peak, two blocks and all weights outside of blocks are gathered. At the end of the
    backward pass their gradients exist too, and communication buffers hold a block and its gradients. With
    `half`, the student's blocks are gathered in bfloat16 (harness/runtime/fsdp.py), and the peak has copies
    by autocast that do not exist; a teacher's are gathered in float32.
    """
    blocks = [_bytes(block.parameters()) for block in model.blocks]
    outside = _bytes([*model.parameters(), *method.parameters()]) - sum(blocks)
    copies = sum(blocks) // 2 if half else 0
    return outside + max(peak - copies + 2 * max(blocks), gradients + 6 * max(blocks))


def _rows(parameter: Tensor, slices: int) -> int:
    """Return the number of rows of the first rank's shard, which is the largest."""
    return -(-parameter.shape[0] // slices)


def _peak(
    spec: RunSpec,
    method: TrainingMethod,
    student: Student,
    size: int,
    encoders: Sequence[Architecture],
    step: int,
) -> int:
    """Return the peak bytes of a micro-batch of a step on top of weights, optimizer and EMA."""
    labels = torch.zeros(size, dtype=torch.int64)
    x0 = torch.zeros(size, *method.setting.backbone.x_shape)
    encodes = method.config.encodes(step)
    views = tuple(empty_view(e, size, method, x0.device) for e in encoders) if encodes else ()
    y = method.setting.backbone.blank_condition(size)
    batch = Batch(np.arange(size), x0, y, labels, step, views=views, given=y)
    draw = draws_of(method, Streams(0), batch)
    modules = [module for module in (student.model, student.ema, method) if module is not None]
    given = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=spec.train.precision == "bfloat16")
    for module in modules:
        module.zero_grad(set_to_none=True)
    with AllocationTracker(given) as allocations:
        with autocast():
            total = method.loss(student, batch, draw).total
        total.backward()
        if spec.train.log_gradients_every:
            read = separate_gradients(method, student, batch, draw, autocast)
            if spec.train.accumulate > 1:
                # The sums over earlier micro-batches.
                known = [*read.flow, *(read.auxiliary or ())]
                return allocations.peak + sum(tensor.nbytes for tensor in known)
    return allocations.peak


def _bytes(parameters: Iterable[Tensor], slices: int = 1) -> int:
    """Return the bytes of the largest shard of each parameter."""
    return sum(_rows(p, slices) * p[:1].numel() * p.element_size() for p in parameters)
