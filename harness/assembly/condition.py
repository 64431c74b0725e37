"""The condition of a spec, labels or text, and the check that its backbone takes it."""

from __future__ import annotations

import torch

from harness.backbone.condition import Text, TextShape
from harness.config.backbone_spec import BackboneSpec
from harness.config.spec import RunSpec
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.evaluation.metric_table import CAPTION_SCORES
from harness.text.base import open_text_encoder, text_architecture
from harness.text.captions import EMPTY
from harness.text.stored import NAME as STORED

OF_MMDIT = ("initial", "text_time")
"""Fields of the backbone that a SiT does not have."""


def check_condition(spec: RunSpec, where: str) -> None:
    """Raise `UserError` unless the backbone takes the condition, and has the fields that are set."""
    backbone, encoder = spec.backbone, spec.text.encoder
    if backbone.kind == "mmdit" and not encoder:
        raise UserError(
            f'{where}: backbone.kind = "mmdit" is conditioned on text; name its encoder, for example '
            "--set text.encoder=minilm, or use the kind sit"
        )
    if backbone.kind == "sit" and encoder:
        raise UserError(
            f'{where}: text.encoder = {encoder}, but backbone.kind = "sit" is conditioned on labels; add '
            "--set backbone.kind=mmdit, or leave out text.encoder"
        )
    texts = [name for name in spec.eval.metrics if name.partition(":")[0] in CAPTION_SCORES]
    if encoder == STORED and texts:
        raise UserError(
            f"{where}: eval.metrics '{texts[0]}' reads the texts of captions, of which text.encoder = "
            f"{STORED} has the features only; remove the metric"
        )
    for name in OF_MMDIT if backbone.kind == "sit" else ():
        if (value := getattr(backbone, name)) != BackboneSpec.model_fields[name].default:
            raise UserError(
                f'{where}: backbone.{name} = {value} needs backbone.kind = "mmdit"; leave it out, or '
                "add --set backbone.kind=mmdit"
            )


def text_shape(spec: RunSpec, dataset: Dataset) -> TextShape:
    """Return the shape of the text features that a spec trains on, without reading weights."""
    about = text_architecture(spec.text, dataset)
    return TextShape(about.dim, about.length)


def null_text(spec: RunSpec, dataset: Dataset, device: torch.device) -> Text | None:
    """Return the features of the empty caption, (1, L, D); None for a spec that is conditioned on labels."""
    if spec.backbone.kind == "sit":
        return None
    encoder = open_text_encoder(spec.text, dataset, held_out=spec.data.held_out, device=device)
    return encoder.encode([EMPTY]).to(device)
