"""HASTE: align features and attention maps with a frozen encoder, then stop (arXiv 2505.16792).

L      = L_gen + coefficient * L_REPA + attention_weight * L_attn    up to step tau = schedule.until
L      = L_gen                                                       after step tau
L_attn = mean_{samples, layers, heads, queries} - sum_j A_ij log softmax_j( q_i k_j / sqrt(d) )

A is the encoder's attention. Student layers 5 to 8 (blocks 4 .. 7, counted from 0) are aligned with the
encoder's last four blocks, in order. Of both, the first min(N_student, N_encoder) heads are used; in the
release (NUS-HPC-AI-Lab/HASTE eb7b1f1), the first 12 of SiT-XL's 16 and DINOv2-B's 12.
Defaults: as released, both weights 0.5, REPA's layer and projector, tau 250k for L and XL, 100k for B. Other
sizes have no stop.
Cost: the encoder's forward pass with its attention maps, and a T x T product for each aligned layer and head.
Ours: the encoder's attention is a softmax over patch tokens only, so that rows sum to 1; the release does not
document its treatment of the class token. Sizes with 8 layers or fewer use layers that end at two thirds of
their depth.
Disputed: without the stop it is worse than REPA at 500k steps (8.1 against 7.5, Table 3). The XL-400k rows of
its Table 4 contradict its figure.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw, View
from harness.flow.student import Student
from harness.runtime.precision import product
from methods.common.alignment import check_layer, taps_of
from methods.common.given_tokens import generated_only
from methods.common.method import Needs
from methods.repa import RepaAlignment, RepaConfig

PUBLISHED_STOP = {"B": 100_000, "L": 250_000, "XL": 250_000}


class Haste(RepaAlignment):
    source = "HASTE, arXiv 2505.16792; NUS-HPC-AI-Lab/HASTE eb7b1f1"
    headline = "SiT-XL/2 FID 5.3 against REPA's 7.5 at 500k steps, SDE, no guidance (its Table 3)"

    class Config(RepaConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0, "attention_weight": 0.0}
        space: ClassVar[dict[str, Any]] = {
            "coefficient": {"low": 0.1, "high": 2.0, "log": True},
            "attention_weight": {"low": 0.1, "high": 2.0, "log": True},
        }

        name: Literal["haste"] = "haste"
        attention_weight: float = Field(0.5, ge=0)
        """Weight of the attention term."""
        layers: tuple[int, ...] | None = None
        """Student layers whose attention is aligned, with the same number of last blocks of the encoder."""

        def resolved(self, backbone: BackboneSpec) -> Self:
            last = 8 if backbone.depth > 8 else round(2 / 3 * backbone.depth)
            layers = self.layers or tuple(range(max(1, last - 3), last + 1))
            if len(set(layers)) < len(layers) or list(layers) != sorted(layers):
                raise ValueError(f"layers = {list(layers)}: list each layer once, in rising order")
            for layer in layers:
                check_layer("layers", layer, layer, backbone)
            schedule = self.schedule
            if schedule.until is None:
                schedule = schedule.model_copy(update={"until": PUBLISHED_STOP.get(backbone.size)})
            return super().resolved(backbone).model_copy(update={"layers": layers, "schedule": schedule})

        @property
        def strength(self) -> float:
            """1 if any term is used, since each term has a separate weight; else 0."""
            return float(bool(self.coefficient or self.attention_weight))

        def needs(self) -> Needs:
            if not self.strength:
                return Needs()
            taps = taps_of(self.layer) if self.coefficient else ()
            heads = self.layers or () if self.attention_weight else ()
            return Needs((self.encoder, *self.further), attention=len(heads), taps=taps, heads=heads)

    config: Config

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        config, total = self.config, prediction.velocity.new_zeros((), dtype=torch.float32)
        if config.coefficient:
            total = total + config.coefficient * super().align(student, batch, draw, prediction)
        if config.attention_weight:
            backbone = self.setting.backbone
            heads = [prediction.heads[layer] for layer in config.layers or ()]
            queries_keys = [(generated_only(q, backbone, dim=2), k) for q, k in heads]
            maps = [generated_only(attention_of(view), backbone, dim=3) for view in batch.views]
            losses = torch.stack([attention_loss(queries_keys, target) for target in maps])
            total = total + config.attention_weight * losses.mean()
        return total


def attention_of(view: View) -> Tensor:
    """Return the attention maps of a view; raises ValueError if it has none."""
    if view.attention is None:
        raise ValueError("the encoder's view has no attention maps")
    return view.attention


def attention_loss(queries_keys: list[tuple[Tensor, Tensor]], target: Tensor) -> Tensor:
    """Return the cross-entropy between attention maps, a float32 scalar.

    `queries_keys` holds queries (B, N, Q, d) and keys (B, N, T, d) of n layers. Rows of `target`
    (B, n, N', Q, T) sum to 1. The first min(N, N') heads of both are compared.
    """
    losses = []
    for (q, k), maps in zip(queries_keys, target.unbind(dim=1), strict=True):
        heads = min(q.shape[1], maps.shape[1])
        logits = product(q[:, :heads], k[:, :heads].transpose(-2, -1)) / q.shape[-1] ** 0.5
        losses.append(-(maps[:, :heads].float() * logits.log_softmax(dim=-1)).sum(dim=-1).mean())
    return torch.stack(losses).mean()
