"""DiverseDiT's loss: the blocks of the network are to have different features (arXiv 2603.04239).

    L      = L_gen + coefficient c(D) D,    D = (orthogonality + information + dispersion) / 3
    orthogonality = mean_{pairs i, j} cos( mean_{b, t} h_i, mean_{b, t} h_j )
    information   = mean_{pairs i, j} | mean_{b, t} cos( h_i, h_j ) |
    dispersion    = - min(1, 4 var_d u_d),    u = usage of channel d over all blocks, its largest value 1
    usage_d       = mean_{blocks, b, t} |h_d| / sqrt( sum_{b, t} h_d^2 )
    c(D)   = 1 above 0.5,    (D - 0.1) / 0.5 above 0.1,    0 otherwise

Source: kobeshegu/DiverseDiT 5fedda1, loss.py and train.py, from a stored copy of that commit. The public
snapshots have no code, so it counts as secondary. Its long residual connections are not part of this method.
Defaults: as in that code, coefficient 1, and the first ten pairs from block 2 on (for 12 blocks, block 2 with
3 to 12): it starts at block 10 - l, where l = 8 is REPA's layer.
Cost: cosines of tokens; no head, no teacher, no encoder.
Ours: b is a group of `group` consecutive samples (in the code, a local batch), so that the value does not
depend on the number of processes. The mean over groups is taken after c. Shallower networks have fewer pairs.
Disputed: c jumps from 0.8 to 1 at D = 0.5, and its gradient is part of the loss, in that code and here. The
paper states a weight of 0.33 for each of the three terms. Its train.py has `--block-diversity-loss-coeff`,
0.001, but does not use it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from harness.backbone.network import Prediction
from harness.config.backbone_spec import BackboneSpec
from harness.flow.batch import Batch, Draw
from harness.flow.student import Student
from methods.common.alignment import check_layer, cosine, in_groups, resolved_layer
from methods.common.given_tokens import generated_only
from methods.common.method import Method, MethodConfig, Needs


class DiverseDiT(Method):
    source = "secondary: DiverseDiT, arXiv 2603.04239; kobeshegu/DiverseDiT 5fedda1"
    headline = "SiT-B/2 FID 33.72 by this loss alone, against 36.8 (secondary note on its ablation)"
    masks_given = True

    class Config(MethodConfig):
        off: ClassVar[dict[str, Any]] = {"coefficient": 0.0}
        space: ClassVar[dict[str, Any]] = {"coefficient": {"low": 0.1, "high": 2.0, "log": True}}

        name: Literal["diversedit"] = "diversedit"
        coefficient: float = Field(1.0, ge=0)
        """Weight of the loss of all blocks."""
        layers: tuple[int, ...] | None = None
        """The blocks that are compared (1-based), in rising order; None for all."""
        first_layer: int | None = None
        """The block (1-based) whose pairs with later blocks come first."""
        pairs: int = Field(10, ge=1, le=1000)
        """Largest number of pairs of blocks."""
        group: int = Field(32, ge=2)
        """Number of consecutive samples over which features are averaged."""

        def resolved(self, backbone: BackboneSpec) -> Self:
            layers = self.layers or tuple(range(1, backbone.depth + 1))
            if len(layers) < 2 or list(layers) != sorted({*layers}):
                raise ValueError(
                    f"layers = {list(layers)}: list two or more blocks, each once, in rising order"
                )
            for layer in layers:
                check_layer("layers", layer, layer, backbone)
            first = check_layer("first_layer", self.first_layer, layers[min(1, len(layers) - 2)], backbone)
            if first not in layers[:-1]:
                raise ValueError(
                    f"first_layer = {first}: is not one of the blocks before the last one, "
                    f"{', '.join(map(str, layers[:-1]))}"
                )
            return self.model_copy(update={"layers": layers, "first_layer": first})

        @property
        def strength(self) -> float:
            return self.coefficient

        def needs(self) -> Needs:
            return Needs(taps=self.layers or (), group=self.group) if self.coefficient else Needs()

    config: Config

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        config = self.config
        blocks = {
            layer: in_groups(
                generated_only(prediction.hidden[layer], self.setting.backbone).float(), config.group
            )
            for layer in config.layers or ()
        }
        later = [layer for layer in blocks if layer >= resolved_layer(config.first_layer)]
        pairs = [
            (blocks[i], blocks[j])
            for i, j in itertools.islice(itertools.combinations(later, 2), config.pairs)
        ]
        value = (orthogonality(pairs) + information(pairs) + dispersion([*blocks.values()])) / 3
        return (falling_weight(value) * value).mean()


def orthogonality(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean cosine of the mean features of two blocks, (G,); blocks: (G, B, T, D)."""
    return torch.stack([cosine(a.mean(dim=(1, 2)), b.mean(dim=(1, 2))) for a, b in pairs]).mean(dim=0)


def information(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean size of the mean cosine of two blocks' tokens, (G,); blocks: (G, B, T, D)."""
    return torch.stack([cosine(a, b).mean(dim=(1, 2)).abs() for a, b in pairs]).mean(dim=0)


def dispersion(blocks: Sequence[Tensor]) -> Tensor:
    """Return minus four times the variance of the channels' usage, at least -1, (G,), of (G, B, T, D)."""
    each = [F.normalize(block.flatten(1, 2), dim=1, eps=1e-8).abs().mean(dim=1) for block in blocks]
    usage = torch.stack(each).mean(dim=0)
    usage = usage / (usage.amax(dim=1, keepdim=True) + 1e-8)
    return -(4 * usage.var(dim=1, correction=0)).clamp(max=1)


def falling_weight(value: Tensor) -> Tensor:
    """Return c(D), shaped like the values."""
    return torch.where(value > 0.5, torch.ones_like(value), ((value - 0.1) / 0.5).clamp(min=0))
