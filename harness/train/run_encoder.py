"""Frozen flowrace runs as encoders: the features of one layer of a run's EMA network.

`run:PATH?layer=8&time=0.5&step=40000` names the folder of a run on the same data. The options may be left
out:

    layer    the block (1-based) whose output is returned; two thirds of the depth by default
    time     the time that the network is given, 0 (clean) by default; the sample then has that much of one
             fixed noise, so that features are a function of the sample
    step     the step of the weights; by default the last one, of a finished run

A spec keeps the run's id in the name and the folder in `weights`, so a folder may be moved. The run's weights
are part of the ids of runs that it teaches, as those of other encoders are.

B  samples    T  tokens    D  width    L  layer
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.assembly.build import backbone_config, build_backbone, weightless
from harness.assembly.run_folder import check_named
from harness.backbone.config import BackboneConfig
from harness.backbone.network import Backbone
from harness.backbone.times import Times
from harness.config.encoder_fields import located
from harness.config.spec import RunSpec, RuntimeSpec
from harness.data.dataset import Dataset
from harness.encoders.base import Architecture, EncoderChoice, Viewer, check_grid, no_attention
from harness.errors import UserError
from harness.files.stamps import stamp_of
from harness.flow.batch import Batch, Draw, View
from harness.flow.path import interpolate
from harness.records import checkpoint
from harness.records.integrity import check_owner
from harness.records.record import Record
from harness.runtime.random_streams import Streams
from harness.train.trained_run import checkpoint_of_run, spec_of_run

EXAMPLE = "run:runs/0123456789ab?layer=8"
NUMBERS = {"layer": int, "time": float, "step": int}
"""The options of a name, and their types."""


class Frozen(NamedTuple):
    """A run that an encoder names."""

    name: str
    folder: Path
    layer: int | None = None
    time: float = 0.0
    step: int | None = None

    @property
    def spec(self) -> RunSpec:
        """The spec of the run. Raises `UserError` if the folder is not that of a run."""
        spec = spec_of_run(self.folder, ())
        check_named(self.folder, spec)
        return spec

    @property
    def file(self) -> Path:
        """The file of its weights. Raises `UserError` for a run that is not finished, if no step is named."""
        record = Record(self.folder)
        if self.step is None and record.status != "done":
            raise UserError(
                f"encoder '{self.name}': {self.folder} is {record.status}; finish the run, or name a step "
                "whose weights it keeps, for example ?step=1000"
            )
        return checkpoint_of_run(self.folder, self.step)

    def layer_of(self, depth: int) -> int:
        """Return the block whose output is read. Raises `UserError` for one that the network lacks."""
        layer = self.layer or max(1, round(2 / 3 * depth))
        if layer > depth:
            raise UserError(
                f"encoder '{self.name}': layer = {layer}, but the network of the run has layers 1 to {depth}"
            )
        return layer


class RunEncoder(Viewer):
    """The network of another flowrace run at one layer, for example run:runs/0123456789ab?layer=8."""

    reads_samples = True
    heads = 0

    def __init__(
        self,
        choice: EncoderChoice,
        dataset: Dataset,
        *,
        grid: tuple[int, ...],
        held_out: float,
        device: torch.device,
    ) -> None:
        run = frozen(choice)
        self.name = run.name
        _check_data(run, dataset, held_out)
        config = _config(run, dataset)
        self.layer, self.dim, self.grid = run.layer_of(config.size.depth), config.size.width, config.grid
        self.flops = pass_flops(config, self.layer)
        network, self.sha256 = _filled(run, config)
        self.params = sum(p.numel() for p in network.parameters())
        self._network = network.to(device).requires_grad_(False).eval()
        self._null, self._time = dataset.classes, run.time
        self._noise = Streams(0).normal("encoder/run", [0], config.x_shape).to(device)

    @staticmethod
    def architecture_of(choice: EncoderChoice, dataset: Dataset, grid: tuple[int, ...]) -> Architecture:
        """Return width and FLOPs of the run's network for samples of the data set, from its spec alone.

        Raises `UserError` for a network whose tokens are not on the grid.
        """
        run = frozen(choice)
        config = _config(run, dataset)
        check_grid(run.name, config.grid, grid)
        return Architecture(config.size.width, pass_flops(config, run.layer_of(config.size.depth)))

    @staticmethod
    def check_weights(choice: EncoderChoice) -> None:
        """Raise `UserError` if the run is not on this machine, or not finished."""
        run = frozen(choice)
        _ = run.spec, run.file

    @staticmethod
    def content(choice: EncoderChoice) -> str:
        """Return the sha256 of the weights of the run's EMA network."""
        file = frozen(choice).file
        return _digest(file, tuple(stamp_of(file)))

    @torch.no_grad()
    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Return the layer's tokens of samples without a condition and, if requested, their mean."""
        if attention:
            raise no_attention(self.name)
        times = Times.per_sample(torch.full((len(images),), self._time, device=images.device))
        config = self._network.config
        x = interpolate(images, self._noise, times, config) if self._time else images
        tokens = self._features(x, times, torch.full((len(x),), self._null, device=x.device))
        return View(tokens, tokens.mean(dim=1) if summary else None)

    @torch.no_grad()
    def guided_view(self, batch: Batch, draw: Draw, scale: float) -> View:
        """Return f_null + scale (f_label - f_null), features of the student's noised samples at its times.

        The labels are those before drop (selftrans_Loss of csslc/Self-Transcendence 42fde5d).
        """
        x = interpolate(batch.x0, draw.noise, draw.times, self._network.config)
        labelled = self._features(x, draw.times, batch.label)
        if scale == 1:
            return View(labelled)
        null = self._features(x, draw.times, torch.full_like(batch.label, self._null))
        return View(null + scale * (labelled - null))

    def _features(self, x: Tensor, times: Times, y: Tensor) -> Tensor:
        """Return the output of the layer, float32 (B, T, D)."""
        prediction = self._network(x, times, y, taps=(self.layer,), stop_after=self.layer)
        return prediction.hidden[self.layer].float()


def frozen(choice: EncoderChoice) -> Frozen:
    """Return the run that a choice names. Raises `UserError` for options that it cannot have."""
    name, folder = located(choice.name, choice.weights)
    _, _, options = name.partition("?")
    pairs = parse_qsl(options, keep_blank_values=True)
    # Any: integers and floats, by the option.
    values: dict[str, int | float] = {}
    for option, text in pairs:
        try:
            values[option] = NUMBERS[option](text)
        except (KeyError, ValueError) as error:
            raise _bad_option(choice.name, option) from error
    fits = values.get("layer", 1) >= 1 and values.get("step", 0) >= 0 and 0 <= values.get("time", 0) < 1
    if len(values) < len(pairs) or not fits:
        raise _bad_option(choice.name, ", ".join(values))
    run = Frozen(name, Path(folder).expanduser(), **values)  # pyright: ignore[reportArgumentType]
    named = name.partition(":")[2].partition("?")[0]
    if run.folder.is_dir() and run.folder.resolve().name != named:
        raise UserError(
            f"encoder '{name}' names the run {named}, but its folder is {run.folder}; set "
            "method.encoder.weights to the folder of that run"
        )
    return run


def _bad_option(name: str, option: str) -> UserError:
    return UserError(
        f"encoder '{name}': option '{option}' is unknown, repeated or out of range; write for example "
        f"{EXAMPLE}, with layer >= 1, 0 <= time < 1 and step >= 0"
    )


def _config(run: Frozen, dataset: Dataset) -> BackboneConfig:
    """Return the configuration of a run's network for samples of a data set.

    Raises `UserError` for networks that need more than a sample, a time and a label.
    """
    spec = run.spec
    if spec.text.encoder:
        raise UserError(
            f"encoder '{run.name}' is conditioned on text; choose a run that is conditioned on labels"
        )
    if spec.method.needs().generates:
        raise UserError(
            f"encoder '{run.name}' generates features too ({spec.method.name}), so it does not read samples "
            "alone; choose another run"
        )
    try:
        return backbone_config(spec, dataset)
    except UserError as error:
        raise UserError(f"encoder '{run.name}' does not fit these samples: {error}") from error


def _check_data(run: Frozen, dataset: Dataset, held_out: float) -> None:
    """Raise `UserError` if a run was trained on other data, or on samples that are held out here."""
    starts = (start for start in Record(run.folder).environment if "data_fingerprint" in start)
    trained = next((start["data_fingerprint"] for start in starts), dataset.fingerprint)
    if trained != dataset.fingerprint:
        raise UserError(
            f"encoder '{run.name}' was trained on other data or latents (fingerprint {trained}, these have "
            f"{dataset.fingerprint}); choose a run on the same"
        )
    if (share := run.spec.data.held_out) < held_out:
        raise UserError(
            f"encoder '{run.name}' was trained with data.held_out = {share}, so it saw samples that are held "
            f"out here; choose a run with data.held_out = {held_out}"
        )


def _filled(run: Frozen, config: BackboneConfig) -> tuple[Backbone, str]:
    """Return the EMA network of a run and the hash of its weights.

    Raises `UserError` if the weights are those of a network for other samples.
    """
    check_owner(run.file)
    tensors = checkpoint.load(run.file).part("ema")
    network = build_backbone(config, RuntimeSpec())
    known = network.state_dict()
    for name in sorted({*known, *tensors}):
        shapes = [tuple(table[name].shape) if name in table else None for table in (tensors, known)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"encoder '{run.name}' is a network for other samples: its {name} has shape {shapes[0]}, and "
                f"these samples need {shapes[1]}; choose a run on the same data"
            )
    network.load_state_dict(tensors)
    return network, checkpoint.digest(tensors)


@lru_cache(maxsize=16)
def _digest(file: Path, stamp: tuple[int, ...]) -> str:
    """Return the hash of the EMA weights in a file; a plan asks for it once a run."""
    return checkpoint.digest(checkpoint.load(file).part("ema"))


@lru_cache(maxsize=16)
def pass_flops(config: BackboneConfig, layer: int) -> int:
    """Count the FLOPs of one sample's forward pass up to a layer, two for each multiply-add."""
    network: nn.Module = weightless(config)
    x, t = torch.empty(1, *config.x_shape, device="meta"), torch.zeros(1, device="meta")
    y = torch.zeros(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, Times.per_sample(t), y, taps=(layer,), stop_after=layer)
    return counter.get_total_flops()
