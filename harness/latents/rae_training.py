"""Training of a representation autoencoder's decoder, with its encoder frozen (arXiv 2510.11690).

    L = mean |D(z + sigma n) - x|,    z = (f(x) - mean) / std,    sigma ~ U[0, noise),    n ~ N(0, 1)

Each image has its sigma. Noise makes the decoder robust to what a generator gets wrong (0.8 as released in
bytetriper/RAE a4d18c4). The optimizer is the released one: AdamW, betas 0.9 and 0.95, no weight decay.
Ours: the release adds a perceptual and an adversarial loss, whose networks it downloads. Here L1 is the only
loss, so pictures are blurrier. The noise is added after the normalisation, and the statistics are exact
instead of a moving average. Training starts from the beginning if it is interrupted.

c  channels of features    g  rows and columns of the grid
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbone.sizes import size_named
from harness.data.dataset import Dataset
from harness.data.open import Split, from_pixels, images, split
from harness.encoders.base import Choice, Encoder, open_encoder, parse_name
from harness.encoders.local import RandomEncoder, schedule
from harness.errors import UserError
from harness.files.files import write_atomic
from harness.latents.pretrained import CONFIG
from harness.latents.rae_decoder import Decoder, initial_decoder
from harness.latents.rae_folder import CLASS, MODEL, EncoderEntry, RaeConfig, check_encoder, maps
from harness.records import checkpoint
from harness.runtime.random_streams import Streams

VARIANCE_FLOOR = 1e-5
"""Added to variances before their root, as released."""
MEASURED = 50_000
"""Largest number of images whose features are measured."""
JUDGED = 500
"""Largest number of held-out images that are decoded to measure the reconstruction."""
BATCH = 64
"""Images in one pass without gradient."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a training."""

    grid: int = 16
    """Rows and columns of tokens."""
    decoder: str = "B"
    """Size of the decoder."""
    steps: int = 10_000
    batch: int = 64
    learning_rate: float = 2e-4
    noise: float = 0.8
    """Largest standard deviation of the noise on latents."""
    held_out: float = 0.1
    """Share of the images that is kept from training."""
    seed: int = 0


@dataclass(frozen=True)
class TrainedRae:
    """A trained decoder with the encoder and the statistics that it belongs to."""

    config: RaeConfig
    tensors: dict[str, Tensor]
    psnr: float
    """Peak signal-to-noise ratio of decoded held-out images, in dB, without noise."""


def train(
    encoder: Choice, dataset: Dataset, recipe: Recipe, device: torch.device, advance: Callable[[int], None]
) -> TrainedRae:
    """Return a decoder trained on the training split. `advance` is called after each step.

    Raises `UserError` for samples that are no images, for an unknown size, and for a grid that does not
    divide the images or that the encoder cannot produce.
    """
    _check(encoder, dataset, recipe)
    grid = (recipe.grid, recipe.grid)
    frozen = open_encoder(encoder, dataset, grid=grid, held_out=recipe.held_out, device=device)
    sides = split(dataset, recipe.held_out)
    mean, std = statistics(frozen, dataset, sides.train, device)
    codec = _Normalised(frozen, mean, std, dataset, device)
    decoder = _fitted(codec, sides, recipe, advance)
    config = RaeConfig.model_validate(
        {
            "_class_name": CLASS,
            "encoder": EncoderEntry(name=frozen.name, sha256=frozen.sha256),
            "channels": frozen.dim,
            "grid": recipe.grid,
            "pixels": tuple(dataset.shape),
            "classes": dataset.classes,
            "decoder": recipe.decoder,
            "training": {name: float(v) for name, v in asdict(recipe).items() if not isinstance(v, str)},
        }
    )
    tensors = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    tensors |= {"latents.mean": mean, "latents.std": std}
    if isinstance(frozen, RandomEncoder) and parse_name(frozen.name)[0] == "local":
        tensors |= {f"encoder.{name}": value for name, value in frozen.weights().items()}
    return TrainedRae(config, tensors, _psnr(codec, decoder, sides))


def save(trained: TrainedRae, folder: Path, weights: str) -> None:
    """Write a folder of `codec rae`; `weights` is the file of the encoder's weights, "" for none.

    config.json is written last, so an interrupted command leaves no folder that can be opened.
    """
    entry = trained.config.encoder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if weights:
            entry = entry.model_copy(update={"file": f"encoder{Path(weights).suffix}"})
            shutil.copyfile(Path(weights).expanduser(), folder / entry.file)
        checkpoint.save(folder / MODEL, trained.tensors, {})
        config = trained.config.model_copy(update={"encoder": entry})
        write_atomic(folder / CONFIG, json.dumps(config.to_json(), indent=1).encode())
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; free disk space, then run it again"
        ) from error


@torch.no_grad()
def statistics(
    encoder: Encoder, dataset: Dataset, index: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of features over images, (c, g, g) each.

    They are those of at most `MEASURED` images, evenly spaced over the index.
    """
    if len(index) > MEASURED:
        index = index[np.linspace(0, len(index) - 1, MEASURED).astype(int)]
    total = squares = torch.zeros(1, dtype=torch.float64, device=device)
    for part in _batches(index):
        z = maps(encoder, _read(dataset, part, device)).double()
        total, squares = total + z.sum(0), squares + (z**2).sum(0)
    mean = total / len(index)
    variance = (squares / len(index) - mean**2).clamp(min=0)
    return mean.float(), (variance + VARIANCE_FLOOR).sqrt().float()


@dataclass(frozen=True)
class _Normalised:
    """The encoder with its statistics, on the images of a data set."""

    encoder: Encoder
    mean: Tensor
    std: Tensor
    dataset: Dataset
    device: torch.device

    @torch.no_grad()
    def pair(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) at data set indices (B,), and their latents (B, c, g, g)."""
        x = _read(self.dataset, index, self.device)
        return x, (maps(self.encoder, x) - self.mean) / self.std


def _fitted(codec: _Normalised, sides: Split, recipe: Recipe, advance: Callable[[int], None]) -> Decoder:
    size = size_named(recipe.decoder)
    assert size is not None
    decoder = initial_decoder(
        size, codec.encoder.dim, recipe.grid, tuple(codec.dataset.shape), recipe.seed
    ).to(codec.device)
    learned = [p for p in decoder.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    streams = Streams(recipe.seed)
    for step, index in enumerate(_order(sides.train, recipe, streams)):
        x, z = codec.pair(index)
        place = np.arange(len(index)) + step * recipe.batch
        sigma = recipe.noise * streams.uniform("rae/sigma", place, (1, 1, 1))
        noise = sigma * streams.normal("rae/noise", place, z.shape[1:])
        loss = F.l1_loss(decoder(z + noise.to(codec.device)), x)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * schedule((step + 1) / recipe.steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        advance(1)
    return decoder.requires_grad_(False).eval()


def _order(train: np.ndarray, recipe: Recipe, streams: Streams) -> Iterator[np.ndarray]:
    """Yield the data set indices of each step."""
    batch = min(recipe.batch, len(train))
    per_epoch = len(train) // batch
    order = train
    for step in range(recipe.steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = train[streams.permutation("rae/order", epoch, len(train))]
        yield order[place * batch : (place + 1) * batch]


@torch.no_grad()
def _psnr(codec: _Normalised, decoder: Decoder, sides: Split) -> float:
    """Return the peak signal-to-noise ratio of decoded images, held-out ones if there are any."""
    index = (sides.held_out if len(sides.held_out) else sides.train)[:JUDGED]
    errors = []
    for part in _batches(index):
        x, z = codec.pair(part)
        errors.append((decoder(z).clamp(-1, 1) - x).square().flatten(1).mean(1))
    return 10 * math.log10(4 / max(float(torch.cat(errors).mean()), 1e-12))


def _batches(index: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(index), BATCH):
        yield index[start : start + BATCH]


def _read(dataset: Dataset, index: np.ndarray, device: torch.device) -> Tensor:
    return from_pixels(images(dataset, index)[0]).to(device)


def _check(encoder: Choice, dataset: Dataset, recipe: Recipe) -> None:
    check_encoder(encoder.name)
    if dataset.modality != "image":
        raise UserError(f"codec 'rae' encodes images, but these samples are {dataset.modality}")
    if size_named(recipe.decoder) is None:
        raise UserError(
            f"--decoder {recipe.decoder}: unknown size; write a size of flowrace list sizes, or "
            "DEPTHxWIDTHxHEADS such as 4x64x4"
        )
    height, width = dataset.shape[1:]
    if height != width or height % recipe.grid:
        raise UserError(
            f"--grid {recipe.grid} must divide the side of square images, but these have {width}x{height} "
            "pixels; choose another grid, or set data.resolution"
        )
