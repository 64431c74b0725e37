"""The state of a run in memory (networks, optimizer, data, meters): how it is built, saved and restored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.assembly.build import backbone_config, build_backbone, build_method
from harness.assembly.frozen import freeze, is_of_further_parts
from harness.backbone.initialize import initialize
from harness.backbone.network import Backbone
from harness.config.spec import RunSpec, StartSpec
from harness.costs.flops import Cost, count_once
from harness.costs.meter import Meter, clock
from harness.data.dataset import Dataset
from harness.data.feed import Feed
from harness.data.open import Split
from harness.data.parts import alone_of, weights_of
from harness.encoders.base import Encoder, data_of, open_encoder, reads_samples
from harness.errors import UserError
from harness.flow.method import TrainingMethod
from harness.flow.student import Student
from harness.records import checkpoint, checkpoint_files
from harness.runtime.fsdp import full_tensor, is_sharded, local_shard, shard, shard_like
from harness.runtime.random_streams import Streams
from harness.text.captions import RunCaptions
from harness.train.optimizer import RunOptimizer, build_optimizer, state_shapes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


POSITIONS, LABELS = "pos_embed", "y_embedder."
"""The frozen code of positions, and the beginning of the label table's name."""


@dataclass
class Run:
    """Everything that a training step reads or changes."""

    spec: RunSpec
    model: Backbone
    ema: Backbone
    method: TrainingMethod
    student: Student
    optimizer: RunOptimizer
    encoders: tuple[Encoder, ...]
    feed: Feed
    streams: Streams
    meter: Meter
    cost: Cost
    id: str
    """The name of its run directory: the run id, or that of an earlier version."""
    captions: RunCaptions | None = None
    """The captions of the data, for a run that is conditioned on text."""
    step: int = 0

    @property
    def learned(self) -> dict[str, nn.Parameter]:
        """All parameters of the optimizer, by name."""
        return learned_by_name(self.model, self.method)


def learned_by_name(model: nn.Module, method: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of student and method by name, in the order of the optimizer."""
    modules = {"model": model, "method": method}
    return {f"{part}.{name}": p for part, module in modules.items() for name, p in module.named_parameters()}


def build_run(
    spec: RunSpec,
    dataset: Dataset,
    sides: Split,
    device: torch.device,
    mesh: DeviceMesh | None = None,
    run_id: str | None = None,
    captions: RunCaptions | None = None,
) -> Run:
    """Return a run at step 0, with initial weights from their streams; a mesh shards it over its ranks.

    `run_id` is the name of its directory, if it is not the spec's id. A run that is conditioned on text needs
    `captions`.
    """
    streams = Streams(spec.seed)
    backbone = backbone_config(spec, dataset)
    encoders = tuple(
        open_encoder(
            choice,
            data_of(choice, dataset),
            grid=backbone.grid,
            held_out=spec.data.held_out,
            device=device,
        )
        for choice in spec.method.needs().encoders
    )
    dims = [encoder.dim for encoder in encoders]
    method = build_method(spec, backbone, dims, weights_of(dataset, spec.data))
    model = build_backbone(backbone, spec.runtime)
    initialize(model, streams, initial=spec.backbone.initial)
    initialize(method, streams, "method.", initial=spec.backbone.initial)
    ema = build_backbone(backbone, spec.runtime, copy_of=model).requires_grad_(False).eval()
    freeze(model, spec)
    cost = count_once(method, spec, encoders=encoders)
    if mesh is None:
        model, ema, method = model.to(device), ema.to(device), method.to(device)
    else:
        shard(model, ema, method, mesh, half=spec.train.precision == "bfloat16")
    meter = clock(device)
    optimizer = build_optimizer(spec, learned_by_name(model, method))
    feed = Feed(
        dataset,
        sides.train,
        streams,
        label_drop=spec.train.label_drop,
        flip=spec.data.flip,
        with_pixels=not all(map(reads_samples, spec.method.needs().encoders)),
        alone=alone_of(dataset, spec.data),
        captions=captions,
        with_given=spec.method.needs().undropped,
    )
    student = Student(model, ema, backbone, meter.phase)
    parts = (model, ema, method, student, optimizer, encoders, feed, streams, meter, cost)
    return Run(spec, *parts, run_id or spec.id, captions)


def checkpoint_writer(run: Run, folder: Path, *, writes: bool = True) -> Callable[[], None]:
    """Return a function that writes a checkpoint of the current state and prunes older ones.

    It may be called later, on any thread: the state is copied now, so later steps cannot change the file. In
    a sharded run tensors are gathered one at a time, so every rank must call `checkpoint_writer`; ranks with
    `writes=False` discard the result.
    """
    path = checkpoint_files.path_of(folder, run.step)
    meta = {"run": run.id, "step": str(run.step)}
    gathered = ((name, full_tensor(tensor.detach())) for name, tensor in _tensors(run).items())
    tensors = {name: tensor.to("cpu", copy=True) for name, tensor in gathered if writes}

    def write() -> None:
        checkpoint.save(path, tensors, meta)
        checkpoint_files.prune(folder, run.spec.train)

    return write


def keep_ema(run: Run, folder: Path, *, writes: bool = True) -> None:
    """Write the EMA weights of the current step into a folder, in the precision that the spec asks for.

    In a sharded run every rank must call it; ranks with `writes=False` write nothing.
    """
    kept = {"float32": torch.float32, "bfloat16": torch.bfloat16}[run.spec.train.keep_precision]
    gathered = ((name, full_tensor(tensor.detach())) for name, tensor in run.ema.state_dict().items())
    tensors = {f"ema.{name}": tensor.to("cpu", kept) for name, tensor in gathered if writes}
    if writes:
        folder.mkdir(exist_ok=True)
        checkpoint_files.remove_unfinished(folder)
        meta = {"run": run.id, "step": str(run.step), "precision": run.spec.train.keep_precision}
        checkpoint.save(checkpoint_files.path_of(folder, run.step), tensors, meta)


def restore_run(run: Run, folder: Path) -> list[Path]:
    """Load the newest checkpoint of a folder into a run; without one, the run stays at its start.

    A damaged checkpoint is passed over for the one before it; those that were passed over are returned.
    Raises `UserError` for a checkpoint that belongs to another run, and if all are damaged.
    """
    files = checkpoint_files.checkpoints(folder)
    if not files:
        if run.spec.start.given:
            _load_start(run, folder.parent)
        elif run.spec.start.arm:
            raise UserError(
                f"start.arm = {run.spec.start.arm} names an arm of a study's [pretraining]; start the run "
                "with flowrace sweep STUDY"
            )
        return []
    file, saved = _newest_intact(files)
    if saved.meta.get("run") != run.id:
        raise UserError(f"{file} belongs to run {saved.meta.get('run')}, not to {run.id}")
    step = str(saved.meta.get("step"))
    if not re.fullmatch("[0-9]{1,18}", step):
        raise UserError(f"{file} has no step in its header; delete it")
    for name, module in {"model": run.model, "ema": run.ema, "method": run.method}.items():
        _load(module, saved.part(name), file)
    states = saved.part("optimizer")
    for name, parameter in run.learned.items():
        state = _optimizer_state(states, name, state_shapes(run.spec, name, parameter), file)
        run.optimizer.state[parameter] = {kind: _as_kept(value, parameter) for kind, value in state.items()}
    run.step = int(step)
    return files[files.index(file) + 1 :]


def _newest_intact(files: Sequence[Path]) -> tuple[Path, checkpoint.Checkpoint]:
    """Return the last of these checkpoints that is not damaged; raises the error of the last if all are."""
    newest: checkpoint.DamagedCheckpoint | None = None
    for file in reversed(files):
        try:
            return file, checkpoint.load(file)
        except checkpoint.DamagedCheckpoint as error:
            newest = newest or error
    assert newest is not None
    raise newest


def _optimizer_state(
    states: dict[str, Tensor], name: str, shapes: dict[str, torch.Size], file: Path
) -> dict[str, Tensor]:
    """Return the saved state of a parameter, empty for one that has had no gradient yet.

    Raises `UserError` if a part of it is missing or has another shape.
    """
    state = {kind: states[key] for kind in shapes if (key := f"{name}.{kind}") in states}
    wrong = [kind for kind in shapes if state and (kind not in state or state[kind].shape != shapes[kind])]
    if wrong:
        raise UserError(
            f"{file} lacks the tensor optimizer.{name}.{wrong[0]} of shape {tuple(shapes[wrong[0]])}; delete "
            "it to continue from the one before"
        )
    return state


def _as_kept(value: Tensor, parameter: nn.Parameter) -> Tensor | int:
    """Return a saved value of a parameter's state as the optimizer keeps it; a whole number is one of
    Python's."""
    if value.dtype == torch.int64:
        return int(value)
    return shard_like(value, parameter) if value.ndim else value.to(parameter.device)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Update theta' <- decay theta' + (1 - decay) theta, where theta' are the parameters of the EMA."""
    averages, weights = ([local_shard(p.detach()) for p in module.parameters()] for module in (ema, model))
    # torch exports its fused operations on lists of tensors only under private names.
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        averages, weights, 1 - decay
    )


def _load_start(run: Run, path: Path) -> None:
    """Load the weights that a run starts from into student and EMA, and projectors if the method has them.

    Raises `UserError` if their file is missing, or holds other weights.
    """
    start = run.spec.start
    if start.run:
        file, saved = load_pretrained(start)
        for module in (run.model, run.ema):
            _load(module, shared_weights(module, saved.part("ema"), file), file)
        return
    own = checkpoint_files.path_of(path / checkpoint_files.EMA, start.step)
    file = own if own.exists() else Path(start.file)
    if not file.is_file():
        raise UserError(
            f"the imported weights of {path.name} are missing: {file if start.file else own}; set start.file "
            "to the file in `ema` of the run that flowrace import wrote, or to the fine-tuned checkpoint"
        )
    saved = checkpoint.load(file)
    weights = saved.part("ema")
    if start.weights not in (saved.meta.get("imported"), start_digest(weights)):
        raise UserError(f"{file} holds other weights than those of start.weights = {start.weights}")
    for module in (run.model, run.ema):
        _load(module, weights if start.layers == "all" else shared_weights(module, weights, file), file)
    projectors, known = saved.part("method"), run.method.state_dict()
    if projectors:
        # A released file has no learned weight of the flow loss.
        fresh = {name: t for name, t in known.items() if name.startswith("log_variance.")}
        projectors = fresh | projectors
    fits = {name: t.shape for name, t in projectors.items()} == {name: t.shape for name, t in known.items()}
    if projectors and fits and saved.meta.get("method") == run.spec.method.name:
        _load(run.method, projectors, file)
    run.step = start.step


def load_pretrained(start: StartSpec) -> tuple[Path, checkpoint.Checkpoint]:
    """Return the weights of the run that a run starts from.

    Raises `UserError` if they are missing, or those of another run or step.
    """
    folder, named = Path(start.file), f"run {start.run} at step {start.run_step}"
    places = (folder / checkpoint_files.CHECKPOINTS, folder / checkpoint_files.EMA)
    files = [checkpoint_files.path_of(place, start.run_step) for place in places]
    file = next((file for file in files if start.file and file.is_file()), None)
    if file is None:
        raise UserError(
            f"the weights of {named} are missing in {start.file or 'start.file'}; finish it with flowrace "
            "sweep, or set start.file to its folder"
        )
    saved = checkpoint.load(file)
    if (saved.meta.get("run"), saved.meta.get("step")) != (start.run, str(start.run_step)):
        raise UserError(f"{file} holds other weights than those of {named}; set start.file to its folder")
    checkpoint_files.check_exact(file, named)
    return file, saved


def start_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the hash of the weights that a run starts from, `start.weights`, from those of an EMA."""
    return checkpoint.digest({f"ema.{name}": tensor for name, tensor in weights.items()})


def shared_weights(module: nn.Module, weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return a network's weights, those that it shares with `weights` replaced.

    Layers of further parts, the label table, and codes of positions may differ, and further embedders and
    final layers may be left out. Raises `UserError` if another layer differs or would be left out.
    """
    found = {name: full_tensor(tensor.detach()) for name, tensor in module.state_dict().items()}
    for name, own in found.items():
        given = weights.get(name)
        if given is not None and given.shape == own.shape and name != POSITIONS:
            found[name] = given
        elif not is_of_further_parts(name) and name != POSITIONS and not name.startswith(LABELS):
            shape = "no such layer" if given is None else f"shape {tuple(given.shape)}"
            raise UserError(
                f"{file} has {shape} for {name}, but this network needs {tuple(own.shape)}; give the same "
                "backbone, and frames of the same size and channels"
            )
    if lost := sorted(name for name in weights.keys() - found.keys() if not _is_at_an_end(name)):
        raise UserError(
            f"{file} has {lost[0]}, which this network lacks, so its features would not be those of the "
            "run; give the same backbone, and a method that adds the same layers"
        )
    return found


def _is_at_an_end(name: str) -> bool:
    """Return whether a weight belongs to an embedder or a final layer, without which features stay alike."""
    layer = name.split(".")[0]
    return "embed" in layer or layer.startswith("final_layer")


def _load(module: nn.Module, tensors: dict[str, Tensor], file: Path) -> None:
    """Load full tensors into a module, sharded as the module is.

    Raises `UserError`, naming the file, if one is missing or unknown, or has another shape.
    """
    known = module.state_dict()
    for name in sorted(known.keys() ^ tensors.keys())[:1]:
        lacks = "lacks" if name in known else "has the unknown tensor"
        raise UserError(f"{file} {lacks} {name}, so it does not belong to this spec; delete it")
    for name, tensor in tensors.items():
        if tensor.shape != known[name].shape:
            raise UserError(
                f"{file}: {name} has shape {tuple(tensor.shape)}, but this spec needs "
                f"{tuple(known[name].shape)}; delete it"
            )
    if is_sharded(module):
        tensors = {name: shard_like(t, known[name]) if name in known else t for name, t in tensors.items()}
    module.load_state_dict(tensors)


def _tensors(run: Run) -> dict[str, Tensor]:
    modules = {"model": run.model, "ema": run.ema, "method": run.method}
    tensors = {
        f"{part}.{name}": t for part, module in modules.items() for name, t in module.state_dict().items()
    }
    for name, parameter in run.learned.items():
        for kind, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{kind}"] = torch.as_tensor(value)
    return tensors
