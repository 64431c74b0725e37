"""The interface of a training objective, as the trainer, the cost counter and the evaluation call it.

Methods derive from `methods.common.method.Method`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from harness.backbone.condition import Condition, SharedText
from harness.backbone.config import BackboneConfig
from harness.backbone.times import Times
from harness.config.method_config import MethodConfig, Needs
from harness.config.training_spec import FlowSpec, TimeSpec
from harness.flow.batch import Batch, Draw
from harness.flow.samplers import Network, plain
from harness.flow.student import Student
from harness.flow.weighting import LogVariance, Weights, weights_at
from harness.runtime.random_streams import Streams


@dataclass(frozen=True)
class Setting:
    """The parts of a run that a method depends on."""

    backbone: BackboneConfig
    time: TimeSpec = field(default_factory=TimeSpec)
    encoder_dims: tuple[int, ...] = ()
    """Width of each encoder's tokens, for a method that reads encoders."""
    weights: tuple[float, ...] = ()
    """Weight of each part of a sample in the flow loss; () for a sample of one part."""
    flow: FlowSpec = field(default_factory=FlowSpec)
    log_variance: LogVariance | None = None
    """The learned weight by time, a module of the method; None without it."""

    def weights_at(self, times: Times) -> Weights | None:
        """Return the weights of the flow loss at the times of a batch; None without weights."""
        return weights_at(times, self.backbone, self.flow, self.log_variance)


class Losses(NamedTuple):
    """The loss of a batch and its named parts."""

    total: Tensor
    """Scalar that is minimised."""
    parts: dict[str, Tensor]
    """Named scalars for the record; they may carry gradients."""


class TrainingMethod(nn.Module):
    """A training objective as the harness calls it. It touches no optimizer, device, file or logger."""

    Config: ClassVar[type[MethodConfig]]
    source: ClassVar[str] = ""
    """Paper, and code if released."""
    headline: ClassVar[str] = ""
    """Main published result, and where it is published."""
    parts_apart: ClassVar[bool] = True
    """Support for samples with several parts, whose tokens have different numbers of values per part."""
    times_apart: ClassVar[bool] = True
    """Support for separate times of a sample's parts (`time.apart`)."""
    parts_mixed: ClassVar[bool] = False
    """Support for samples that lack a part (`data.parts.*.alone`). A second term must leave out the tokens of
    missing parts (methods/common/missing_parts.py)."""
    masks_given: ClassVar[bool] = False
    """Support for given tokens (`data.given`). A second term must leave them out of its means
    (methods/common/given_tokens.py)."""
    student_cost: ClassVar[tuple[float, float]] = (1.0, 1.1)
    """Least and most FLOPs of student and loss, relative to a plain step with the same number of times. The
    weights of the method itself are not part of them. The conformance tests compare them with a count."""
    guides: ClassVar[bool] = False
    """Support for `eval.method_guidance`, the scale of the method's own guidance in `velocity`."""

    # Any: methods narrow the type of `config` to their own Config, which type checkers forbid for attributes.
    config: Any
    setting: Setting

    def __init__(self, config: MethodConfig, setting: Setting) -> None:
        super().__init__()
        # A term of a stack has the module of the stack.
        if setting.flow.weighting == "log_variance" and setting.log_variance is None:
            self.log_variance = LogVariance()
            setting = replace(setting, log_variance=self.log_variance)
        self.config = config
        self.setting = setting

    @classmethod
    def build(
        cls,
        config: MethodConfig,
        backbone: BackboneConfig,
        *,
        time: TimeSpec | None = None,
        encoder_dims: Sequence[int] = (),
        weights: Sequence[float] = (),
        flow: FlowSpec | None = None,
    ) -> Self:
        """Return the method for a backbone; the other arguments are those of `Setting`."""
        own = (time or TimeSpec(), tuple(encoder_dims), tuple(weights), flow or FlowSpec())
        return cls(config, Setting(backbone, *own))

    def needs(self) -> Needs:
        """Return what the method needs from the trainer while its second term has a weight."""
        return self.config.needs()

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        """Return noise, times and other draws for a batch, from the run's streams."""
        raise NotImplementedError

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        """Return the losses of a batch."""
        raise NotImplementedError

    def velocity(
        self,
        model: Network,
        x: Tensor,
        times: Times,
        y: Condition | SharedText,
        *,
        scale: float = 1.0,
        null: Condition | SharedText | None = None,
    ) -> Tensor:
        """Return the velocity that samplers integrate, shaped like x; by default, that of the network.

        `scale` is `eval.method_guidance` at this time, and 1 must give the network's own velocity. `null` is
        the null condition of the samples, or None while the scale is 1. A sampler has no encoder and no
        weights of the method: read only `config`, `setting` and the network.
        """
        return plain(model, x, times, y)

    def after_step(self, student: Student, step: int) -> None:
        """Update the method's own state after an optimizer step; by default, do nothing."""
