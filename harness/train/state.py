"""A run in memory: its networks, optimizer, data and meters; how they are built, saved and restored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.assembly.build import backbone_config, build_method
from harness.backbone.initialize import initialize
from harness.backbone.sit import SiT
from harness.config.spec import RunSpec
from harness.costs.flops import Cost, count
from harness.costs.meter import Meter, clock
from harness.data.dataset import Dataset, pictured
from harness.data.feed import Feed
from harness.data.open import Split
from harness.data.parts import alone_of, weights_of
from harness.encoders.base import Encoder, open_encoder
from harness.errors import UserError
from harness.flow.student import Student
from harness.records import checkpoint
from harness.runtime.fsdp import is_sharded, like, own, shard, whole
from harness.runtime.random_streams import Streams

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass
class Run:
    """What a step changes, and what it needs."""

    spec: RunSpec
    model: SiT
    ema: SiT
    method: nn.Module
    student: Student
    optimizer: torch.optim.AdamW
    encoders: tuple[Encoder, ...]
    feed: Feed
    streams: Streams
    meter: Meter
    cost: Cost
    step: int = 0

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """Every parameter that the optimizer sees, by name."""
        modules = {"model": self.model, "method": self.method}
        return {
            f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()
        }


def build(
    spec: RunSpec, dataset: Dataset, sides: Split, device: torch.device, mesh: DeviceMesh | None = None
) -> Run:
    """A run at step 0, initial weights from their streams; with a mesh, divided over its processes."""
    streams = Streams(spec.seed)
    backbone = backbone_config(spec, dataset)
    encoders = tuple(
        open_encoder(
            choice, pictured(dataset), grid=backbone.grid, held_out=spec.data.held_out, device=device
        )
        for choice in spec.method.needs().encoders
    )
    weights = weights_of(dataset, spec.data)
    method = build_method(spec, backbone, [encoder.dim for encoder in encoders], weights)
    backbone = method.setting.backbone
    model = SiT(backbone)
    initialize(model, streams)
    initialize(method, streams, "method.")
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    cost = count(method, spec, encoders=encoders)
    model.checkpoint_activations = spec.runtime.checkpoint_activations
    if spec.runtime.compile:
        compile_blocks(model)
        compile_blocks(ema)
    if mesh is None:
        model, ema, method = model.to(device), ema.to(device), method.to(device)
    else:
        shard(model, ema, method, mesh)
    meter = clock(device)
    train = spec.train
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *method.parameters()],
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
        fused=True,
    )
    draws = {"label_drop": train.label_drop, "flip": spec.data.flip}
    alone = alone_of(dataset, spec.data)
    feed = Feed(dataset, sides.train, streams, **draws, with_pixels=bool(encoders), alone=alone)
    student = Student(model, ema, backbone, meter.phase)
    return Run(spec, model, ema, method, student, optimizer, encoders, feed, streams, meter, cost)


def compile_blocks(model: SiT) -> None:
    """Compile a network block by block: all blocks of a network share one piece of code for each kind of pass.

    Shapes are fixed, so that a batch of another size in evaluation does not change what training runs.
    """
    for block in model.blocks:
        block.compile(dynamic=False)


def saver(run: Run, folder: Path, *, writes: bool = True) -> Callable[[], None]:
    """What writes a checkpoint of the run as it is now and prunes older ones; it may be called in any thread, later.

    The state is copied at once, so the steps behind it do not reach the file. Of a run that is divided it is put together
    tensor by tensor, so every process must ask; one that `writes` nothing keeps nothing.
    """
    path = checkpoint.path_of(folder, run.step)
    meta = {"run": run.spec.id, "step": str(run.step)}
    gathered = ((name, whole(tensor.detach())) for name, tensor in _tensors(run).items())
    tensors = {name: tensor.to("cpu", copy=True) for name, tensor in gathered if writes}

    def write() -> None:
        checkpoint.save(path, tensors, meta)
        checkpoint.prune(folder, run.spec.train)

    return write


def restore(run: Run, folder: Path) -> None:
    """Continue from the newest checkpoint of a folder; without one, stay at step 0.

    Raises `UserError` for a checkpoint that is damaged or belongs to another run.
    """
    found = checkpoint.checkpoints(folder)
    if not found:
        return
    saved = checkpoint.load(found[-1])
    if saved.meta.get("run") != run.spec.id:
        raise UserError(f"{found[-1]} belongs to run {saved.meta.get('run')}, not to {run.spec.id}")
    for name, module in {"model": run.model, "ema": run.ema, "method": run.method}.items():
        _load(module, saved.part(name))
    states = saved.part("optimizer")
    for name, parameter in run.learned.items():
        state = {
            kind: states[f"{name}.{kind}"]
            for kind in ("exp_avg", "exp_avg_sq", "step")
            if f"{name}.{kind}" in states
        }
        run.optimizer.state[parameter] = {
            kind: like(value, parameter) if value.ndim else value.to(parameter.device)
            for kind, value in state.items()
        }
    run.step = int(saved.meta["step"])


def _load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Whole tensors into a module, divided as it is."""
    if is_sharded(module):
        known = module.state_dict()
        tensors = {name: like(t, known[name]) if name in known else t for name, t in tensors.items()}
    module.load_state_dict(tensors)


def load_ema(path: Path, run_spec: RunSpec, dataset: Dataset, device: torch.device) -> SiT:
    """The evaluated network of a checkpoint file."""
    weights, backbone = checkpoint.load(path).part("ema"), backbone_config(run_spec, dataset)
    if (embedder := weights.get("extra_embedder.proj.weight")) is not None:
        backbone = replace(backbone, extra=embedder.shape[1])
    model = SiT(backbone)
    model.load_state_dict(weights)
    if run_spec.runtime.compile:
        compile_blocks(model)
    return model.to(device).requires_grad_(False).eval()


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """theta' <- decay theta' + (1 - decay) theta."""
    mine, theirs = ([own(p.detach()) for p in module.parameters()] for module in (ema, model))
    torch._foreach_lerp_(mine, theirs, 1 - decay)


def _tensors(run: Run) -> dict[str, Tensor]:
    modules = {"model": run.model, "ema": run.ema, "method": run.method}
    tensors = {
        f"{part}.{name}": t for part, module in modules.items() for name, t in module.state_dict().items()
    }
    for name, parameter in run.learned.items():
        for kind, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{kind}"] = value
    return tensors
