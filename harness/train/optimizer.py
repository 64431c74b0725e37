"""The optimizer of a run, and the state that it keeps for each parameter.

adamw         AdamW, fused, for every parameter
muon          torch.optim.Muon for the matrices of the blocks, AdamW for every other parameter
adam_atan2    Adam with atan2(m, sqrt(v)) in place of a quotient with epsilon (Everett et al.,
              arXiv 2407.05872), from the package adam-atan2-pytorch (extra `optimizers`)

Muon (Jordan, kellerjordan.github.io/posts/muon) is for the matrices of hidden layers: attention, MLP and
modulation of the blocks, and the queries, keys and values of a block are one matrix here, as in the network.
Embeddings, final layers, vectors and a method's modules have AdamW. Both have the learning rate and weight
decay of `train`; `optimizer.adjust_lr` decides how Muon's rate depends on the shape of a matrix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.config.spec import RunSpec
from harness.costs.optimizer import is_orthogonalised
from harness.errors import UserError

ATAN2_PACKAGE = "adam-atan2-pytorch"


class RunOptimizer(Protocol):
    """The part of torch's optimizer that training uses."""

    # Any: torch's types of settings and of states.
    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]

    # Any: what torch's `step` returns without a closure.
    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...


class Together:
    """Several optimizers as one, each with its own parameters."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        # Any: as in torch. No two parts have a parameter in common, so one dictionary can serve all.
        self.state: defaultdict[Tensor, Any] = defaultdict(dict)
        for part in parts:
            part.state = self.state

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


def check_optimizer(spec: RunSpec) -> None:
    """Raise `UserError` if the package of the spec's optimizer is not installed."""
    if spec.optimizer.name == "adam_atan2":
        _adam_atan2()


def build_optimizer(spec: RunSpec, learned: Mapping[str, nn.Parameter]) -> RunOptimizer:
    """Return the optimizer of a spec for all parameters by name (`Run.learned`)."""
    train, chosen = spec.train, spec.optimizer
    if chosen.name == "adam_atan2":
        return _adam_atan2()(
            list(learned.values()),
            lr=train.learning_rate,
            betas=train.betas,
            weight_decay=train.weight_decay,
        )
    if chosen.name == "adamw":
        return _adamw(spec, learned.values())
    matrices = {name: p for name, p in learned.items() if is_orthogonalised(name, p)}
    muon = torch.optim.Muon(
        list(matrices.values()),
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
        momentum=chosen.momentum,
        adjust_lr_fn=chosen.adjust_lr,
    )
    return Together(muon, _adamw(spec, [p for name, p in learned.items() if name not in matrices]))


def state_shapes(spec: RunSpec, name: str, parameter: Tensor) -> dict[str, torch.Size]:
    """Return the shape of each tensor that the optimizer keeps for a parameter, by kind."""
    if spec.optimizer.name == "muon" and is_orthogonalised(name, parameter):
        return {"momentum_buffer": parameter.shape}
    count = "steps" if spec.optimizer.name == "adam_atan2" else "step"
    return {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, count: torch.Size()}


def _adamw(spec: RunSpec, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    train = spec.train
    return torch.optim.AdamW(
        list(parameters),
        lr=train.learning_rate,
        betas=train.betas,
        weight_decay=train.weight_decay,
        fused=True,
    )


# Any: a class of an optional package.
def _adam_atan2() -> Any:
    try:
        from adam_atan2_pytorch import AdamAtan2  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"optimizer.name = adam_atan2 needs {ATAN2_PACKAGE}, which is not installed; run: pip install "
            "'flowrace[optimizers]', or set optimizer.name to adamw or muon"
        ) from error
    return AdamAtan2
