"""The seam of an objective: what it needs, what it draws, what it loses. No optimizer, device, file or logger in here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from harness.backbone.sit import Prediction, SiTConfig
from harness.config.spec import BackboneSpec, MethodSettings, TimeSpec
from harness.flow.batch import Batch, Draw
from harness.flow.path import interpolate, part_times, times_of_parts, velocity_target
from harness.flow.student import Student
from harness.runtime.random_streams import Streams
from methods.common.missing_parts import separated, weights_of_samples


class Needs(NamedTuple):
    """What a method asks of the trainer. A need that is not there costs nothing."""

    encoders: tuple[Any, ...] = ()
    """An `EncoderSpec` for each frozen encoder whose view the batch shall carry."""
    summary: bool = False
    """The view has the encoder's summary too, and the network one more token of its width, generated beside the image."""
    attention: int = 0
    """Of how many last blocks the view has the encoder's attention."""
    teacher: bool = False
    """A pass of the EMA network."""
    times: int = 1
    """Noise levels per sample; 0 means one for each token."""
    taps: tuple[int, ...] = ()
    """Student layers whose output the loss reads (1-based)."""
    heads: tuple[int, ...] = ()
    """Student layers whose queries and keys the loss reads (1-based)."""
    group: int = 1
    """Consecutive samples that the loss compares with each other and that a micro-batch may not part."""


class Schedule(BaseModel):
    """When a method aligns, and how much: an option of every method (early stop is HASTE's, arXiv 2505.16792)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    until: int | None = Field(None, ge=0)
    """The last step with alignment; behind it neither teacher nor encoder runs."""
    warmup: int = Field(0, ge=0)
    """Steps over which the weight rises linearly to its full value."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """How the weight falls to zero between warm-up and `until`."""

    @model_validator(mode="after")
    def _decay_has_an_end(self) -> Self:
        if self.decay != "none" and (self.until is None or self.until <= self.warmup):
            raise ValueError(
                f"decay = '{self.decay}' needs an `until` behind the warm-up of {self.warmup} steps"
            )
        return self

    def factor(self, step: int) -> float:
        """What the weight is multiplied with at a step (1-based), in [0, 1]."""
        if self.until is not None and step > self.until:
            return 0.0
        if step < self.warmup:
            return step / self.warmup
        if self.decay == "none":
            return 1.0
        left = (self.until - step) / (self.until - self.warmup)
        return left if self.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


class MethodConfig(MethodSettings):
    """Base of every method's Config."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    off: ClassVar[dict[str, Any]] = {}
    """The settings under which the method is plain flow matching, bit for bit."""
    space: ClassVar[dict[str, Any]] = {}
    """What `flowrace tune` searches: by setting, `low` and `high` (and `log`), or `choices`. Around the published value."""

    # Required here, unlike in the settings of a spec whose method is not resolved yet.
    name: str  # pyright: ignore[reportGeneralTypeIssues]
    schedule: Schedule = Schedule()

    @property
    def strength(self) -> float:
        """The weight of the alignment term, before its schedule; 0 when there is none."""
        return 0.0

    def weight(self, step: int) -> float:
        """The weight of the alignment term at a step (1-based)."""
        return self.strength * self.schedule.factor(step)

    def encodes(self, step: int) -> bool:
        """Whether the encoders run at a step (1-based)."""
        return bool(self.needs().encoders) and self.weight(step) > 0

    def resolved(self, backbone: BackboneSpec) -> Self:
        """The config with everything filled in that depends on the backbone.

        Raises ValueError ("field = value: what is allowed") for a setting that this backbone cannot have.
        """
        if self.schedule != Schedule() and type(self).strength is MethodConfig.strength:
            raise ValueError(f"schedule: {self.name} aligns nothing, so there is nothing to schedule")
        return self

    def needs(self) -> Needs:
        """What these settings ask of the trainer while they align; plain flow matching asks for nothing."""
        return Needs()


@dataclass(frozen=True)
class Setting:
    """What a method is built for."""

    backbone: SiTConfig
    time: TimeSpec = field(default_factory=TimeSpec)
    encoder_dims: tuple[int, ...] = ()
    """Width of each encoder's tokens, for a method that needs some."""
    weights: tuple[float, ...] = ()
    """Of each part of a sample in the flow loss; () for a sample of one part."""


class Losses(NamedTuple):
    total: Tensor
    """Scalar that is minimised."""
    parts: dict[str, Tensor]
    """Named scalars for the record, detached from nothing."""


class Method(nn.Module):
    """Base of every objective: flow matching plus a weighted alignment term.

    A subclass sets `Config` and overrides what differs: `draw` for its times and masks, `align` for its second term.
    """

    Config: ClassVar[type[MethodConfig]]
    source: ClassVar[str] = ""
    """Paper (and code) that the method is taken from."""
    headline: ClassVar[str] = ""
    """The published figure that it is known for, with where it stands."""
    parts_apart: ClassVar[bool] = True
    """Whether a sample may be a video with its sound, whose tokens hold different numbers of values."""
    times_apart: ClassVar[bool] = True
    """Whether the parts of a sample may have times of their own (`time.apart`)."""
    parts_mixed: ClassVar[bool] = False
    """Whether samples may lack a part (`data.parts.*.alone`): the second term must then ignore its tokens (missing_parts.py)."""

    def __init__(self, config: MethodConfig, setting: Setting) -> None:
        super().__init__()
        self.config = config
        self.setting = setting

    @classmethod
    def build(cls, config: MethodConfig, backbone: SiTConfig, **setting: Any) -> Self:
        """The method for a backbone; further arguments as `Setting` has them."""
        return cls(config, Setting(backbone, **setting))

    def needs(self) -> Needs:
        return self.config.needs()

    def draw(self, streams: Streams, batch: Batch) -> Draw:
        """Noise and one time per sample, from the streams that all methods share."""
        t = part_times(self.setting.time, self.setting.backbone, streams, "time", batch.index)
        noise = streams.normal("noise", batch.index, batch.x0.shape[1:])
        return Draw(noise, times_of_parts(t, self.setting.backbone))

    def loss(self, student: Student, batch: Batch, draw: Draw) -> Losses:
        """L_gen + weight x L_align; without weight, L_gen alone and no work for the other."""
        weight = self.config.weight(batch.step)
        x_tau = interpolate(batch.x0, draw.noise, draw.times, self.setting.backbone)
        needs = self.needs() if weight else Needs()
        groups = separated(draw.groups, batch, self.setting.backbone)
        prediction = student(x_tau, draw.times, batch.y, taps=needs.taps, groups=groups, heads=needs.heads)
        flow = flow_loss(prediction.velocity, batch, draw, self.setting)
        if not weight:
            return Losses(flow, {"flow": flow})
        align = self.align(student, batch, draw, prediction)
        return Losses(flow + weight * align, {"flow": flow, "align": align})

    def align(self, student: Student, batch: Batch, draw: Draw, prediction: Prediction) -> Tensor:
        """The second term, a scalar; called only while its weight is not zero."""
        raise NotImplementedError(f"{type(self).__name__} has a weight but no alignment term")

    def after_step(self, student: Student, step: int) -> None:
        """Called behind every optimizer step; most methods have nothing to do."""


def flow_loss(velocity: Tensor, batch: Batch, draw: Draw, setting: Setting) -> Tensor:
    """L_gen = mean || v - (eps - x0) ||^2 over samples, channels and pixels, in float32 (SiT Eq. 7; REPA loss.py); of several
    parts the weighted sum (Self-Flow section 4.4), each sample's over those that it has (missing_parts.py)."""
    return velocity_error(velocity, velocity_target(batch.x0, draw.noise), batch, setting)


def velocity_error(velocity: Tensor, target: Tensor, batch: Batch, setting: Setting) -> Tensor:
    """Mean square of v - target, float32, as L_gen weighs it."""
    velocity = velocity.float()
    if not setting.weights:
        return F.mse_loss(velocity, target)
    pairs = list(zip(*map(setting.backbone.apart, (velocity, target)), strict=True))
    if batch.present is None:
        return sum(weight * F.mse_loss(a, b) for weight, (a, b) in zip(setting.weights, pairs, strict=True))
    weights_PB = weights_of_samples(batch.present, setting.weights).unbind(dim=1)
    errors = [(a - b).square().flatten(1).mean(dim=1) for a, b in pairs]
    return sum((weights * error).mean() for weights, error in zip(weights_PB, errors, strict=True))
