"""A trained run on disk: its spec, checkpoints, network, samples and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.assembly.resolve import load_spec
from harness.config.data_spec import DataSpec
from harness.config.evaluation_spec import EvalSpec
from harness.config.spec import RunSpec
from harness.data.dataset import Capabilities
from harness.errors import UserError
from harness.records.record import Record

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from harness.backbone.network import Backbone
    from harness.data.dataset import Dataset
    from harness.evaluation.conditions import Conditions
    from harness.evaluation.npz_export import Job
    from harness.evaluation.result import Result
    from harness.flow.samplers import Rule
    from harness.flow.sampling import Decode


class Drawing(NamedTuple):
    """Samples of a run to be drawn: the network, the job that numbers them, their conditions, and the decoder
    of latents."""

    model: nn.Module
    job: Job
    conditions: Conditions
    decode: Decode | None
    device: torch.device
    rule: Rule
    """The method's velocity at sampling."""

    def batches(self) -> Iterator[Tensor]:
        """Yield the samples in order, uint8 (B, C, H, W) on the CPU."""
        import numpy as np

        for part in self.job.ranges():
            index = np.arange(part.start, part.stop)
            yield self.batch(index, index)

    def batch(self, numbers: np.ndarray, conditions: np.ndarray) -> Tensor:
        """Return samples with the noise of sample numbers (B,) and the conditions of others, uint8 (B, ...)
        on the CPU."""
        from harness.flow.sampling import Sampling, draw_batch

        job, of = self.job, self.conditions
        sampling = Sampling(job.spec, job.drawn, of.null, self.device, self.decode, self.rule, of.given)
        return draw_batch(self.model, sampling, numbers, of.condition(conditions))


def spec_of_run(path: Path, overrides: tuple[str, ...]) -> RunSpec:
    """Return the spec of a run directory, with overrides of fields that do not change its training."""
    if not path.is_dir():
        raise UserError(f"no such run directory: {path}")
    # Reading the spec raises a clear error if this is not a run directory.
    recorded = Record(path).spec
    # Imported weights name no codec; the data of a trained run does, or is latents of other code.
    latent = recorded.get("data", {}).get("name") == "latents" and not recorded["data"].get("codec")
    codec = ("data.codec",) if recorded.get("start", {}).get("weights") or latent else ()
    for override in overrides:
        if not override.startswith(("eval.", "runtime.", "data.root", *codec)):
            raise UserError(
                f"--set {override}: only eval.*, runtime.* and data.root can be changed for an existing run"
            )
    return load_spec(str(path), overrides)


def checkpoint_of_run(path: Path, step: int | None) -> Path:
    """Return the file with the weights of a step; None: the newest checkpoint.

    Raises `UserError` if it does not exist.
    """
    from harness.records.checkpoint_files import CHECKPOINTS, checkpoints, weights_files

    newest, kept = checkpoints(path / CHECKPOINTS), weights_files(path)
    if not kept:
        raise UserError(f"{path} has no checkpoint yet")
    if step is None:
        return newest[-1] if newest else list(kept.values())[-1]
    if step not in kept:
        raise UserError(
            f"{path} has no checkpoint at step {step} (available: {', '.join(f.stem for f in kept.values())})"
        )
    return next((file for file in newest if file.stem == kept[step].stem), kept[step])


def drawing_of_run(
    path: Path,
    spec: RunSpec,
    step: int | None,
    count: int,
    classes: tuple[int, ...],
    device: torch.device,
    prompts: Sequence[str] = (),
) -> Drawing:
    """Prepare `count` samples of a checkpoint, of the given classes or prompts.

    Without these, they are of all classes, or of the captions of evaluations. Raises `UserError` for a class
    or a step that the run does not have, and for prompts of a run that is not conditioned on text.
    """
    from harness.assembly.build import sampling_rule
    from harness.data.dataset import pictured, x_shape
    from harness.evaluation.npz_export import Job, check_classes
    from harness.latents.codec import decoder_of
    from metrics.files.hashing import file_sha256

    dataset = dataset_to_draw(path, spec)
    if dataset.modality == "robot":
        raise UserError(
            f"{path} generates actions of a robot, which act in an environment: "
            f"flowrace rollout {path} --task TASK"
        )
    check_classes(classes, dataset.classes)
    decode, codec, undecoded = decoder_of(dataset, device)
    if undecoded:
        raise UserError(f"samples are images, but {undecoded}")
    file = checkpoint_of_run(path, step)
    drawn = spec.eval.by_guidance[0].model_copy(update={"samples": count})
    conditions = _conditions(spec, drawn, dataset, classes, prompts, device)
    about = conditions.about()
    text = json.dumps([about, conditions.encoder_sha256], sort_keys=True) if about else ""
    # Samples of prompts have no labels.
    labelled = 1 if prompts else dataset.classes
    job = Job(file_sha256(file), drawn, x_shape(dataset), labelled, classes, text=text)
    if decode is not None:
        job = job._replace(latent=job.shape, shape=pictured(dataset).shape, **codec)
    rule = sampling_rule(spec, dataset)
    return Drawing(load_ema(file, spec, dataset, device), job, conditions, decode, device, rule)


def _conditions(
    spec: RunSpec,
    drawn: EvalSpec,
    dataset: Dataset,
    classes: tuple[int, ...],
    prompts: Sequence[str],
    device: torch.device,
) -> Conditions:
    """Return the conditions of samples of given classes, of given prompts, or as in an evaluation."""
    from harness.assembly.given import gives_tokens
    from harness.data.open import split
    from harness.evaluation.conditions import LabelConditions, SampleLabels, conditions_of
    from harness.text.base import open_text_encoder
    from harness.text.captions import PromptConditions, open_captions

    if not spec.text.encoder:
        if prompts:
            raise UserError("this run is conditioned on class labels, not on text; give --classes instead")
        if not gives_tokens(spec.data, dataset.modality):
            return LabelConditions(drawn, dataset.classes, classes)
        sides = split(dataset, spec.data.held_out)
        return SampleLabels(drawn, dataset, sides.held_out, sides.train, classes)
    if classes:
        raise UserError("this run is conditioned on text, not on class labels; give --prompt instead")
    giving = dataset if gives_tokens(spec.data, dataset.modality) else None
    if prompts and giving is not None:
        raise UserError(
            "samples of this run have given tokens, which are those of held-out samples with their captions; "
            "leave out --prompt"
        )
    if prompts:
        encoder = open_text_encoder(spec.text, dataset, held_out=spec.data.held_out, device=device)
        return PromptConditions(encoder, prompts)
    sides, captions = split(dataset, spec.data.held_out), open_captions(spec, dataset, device)
    return conditions_of(drawn, dataset.classes, captions, sides.held_out, sides.train, giving)


def dataset_to_draw(path: Path, spec: RunSpec) -> Dataset:
    """Return the data set of a run, or shape, classes and codec alone for imported weights without data."""
    from harness.latents.dataset import decodable

    without_data = bool(spec.start.weights) and spec.data.name == "latents" and not spec.data.root
    return decodable(spec.data) if without_data else dataset_of_run(path, spec.data)


def dataset_of_run(path: Path, data: DataSpec) -> Dataset:
    """Return the data set that a run is trained on; a codec that it was trained without only decodes."""
    from harness.data.open import open_dataset

    trained = Record(path).spec.get("data", {})
    if not data.codec or trained.get("codec") or not trained.get("fingerprint"):
        return open_dataset(data)
    dataset = open_dataset(data.model_copy(update={"codec": "", "codec_weights": ""}))
    if not Capabilities(dataset).undecoded:
        raise UserError(
            f"data.codec = '{data.codec}', but {data.root} names the codec of its latents; leave it out"
        )
    return Capabilities(dataset).decoded_by(data)


def evaluate_run(path: Path, spec: RunSpec, step: int | None = None) -> tuple[Path, Result]:
    """Measure a checkpoint by the metrics of a spec; return its file and the result. The run is not
    changed."""
    from harness.assembly.build import sampling_rule
    from harness.assembly.given import gives_tokens
    from harness.data.open import split
    from harness.evaluation.evaluator import Evaluator
    from harness.evaluation.metric_table import HELD_OUT_LOSS
    from harness.runtime.environment import prepare
    from harness.text.captions import open_captions

    prepare(spec.runtime.threads)
    file, model, device = model_of_run(path, spec, step)
    dataset = dataset_of_run(path, spec.data)
    sides, captions = split(dataset, spec.data.held_out), open_captions(spec, dataset, device)
    # Without held-out samples no noise floors are measured, which nothing reads here.
    unread = captions is None and HELD_OUT_LOSS not in spec.eval.metrics
    held_out = None if unread else sides.held_out
    rule = sampling_rule(spec, dataset)
    giving = gives_tokens(spec.data, dataset.modality)
    evaluator = Evaluator(
        spec.eval,
        dataset,
        sides.train,
        device,
        sides.held_out if giving else held_out,
        captions=captions,
        rule=rule,
        giving=giving,
    )
    result = evaluator(model)
    # The result is None only on ranks other than 0, and this is a single process.
    assert result is not None
    return file, result


def model_of_run(path: Path, spec: RunSpec, step: int | None) -> tuple[Path, Backbone, torch.device]:
    """Return the checkpoint file of a step (None: the newest), its EMA network and the device."""
    from harness.runtime.distributed import pick_device

    file = checkpoint_of_run(path, step)
    device = pick_device(spec.runtime.device)
    return file, load_ema(file, spec, dataset_of_run(path, spec.data), device), device


def load_ema(file: Path, spec: RunSpec, dataset: Dataset, device: torch.device) -> Backbone:
    """Return the EMA network of a checkpoint file, which is the network that evaluations use."""
    from harness.assembly.build import backbone_config, build_backbone
    from harness.records import checkpoint
    from harness.records.integrity import check_owner

    check_owner(file)
    model = build_backbone(backbone_config(spec, dataset), spec.runtime)
    model.load_state_dict(checkpoint.load(file).part("ema"))
    return model.to(device).requires_grad_(False).eval()
