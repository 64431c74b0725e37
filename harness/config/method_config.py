"""The settings of a method: the base of its Config, what it needs, and the schedule of its alignment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from harness.config.backbone_spec import BackboneSpec
from harness.config.section import Section


class Needs(NamedTuple):
    """Requirements of a method on the trainer. A need at its default costs nothing."""

    # Any: an `EncoderSpec` of methods/common/alignment.py, or a method's own description of an encoder.
    encoders: tuple[Any, ...] = ()
    """The choice of each frozen encoder whose view the batch must contain."""
    summary: bool = False
    """Put the encoder's summary into its view. The network gets one more token of its width, generated with
    the image."""
    attention: int = 0
    """Number of the encoder's last blocks whose attention maps are in its view."""
    teacher: bool = False
    """Run a forward pass of the EMA network."""
    times: int = 1
    """Noise levels per sample; 0 for one per token."""
    taps: tuple[int, ...] = ()
    """Student layers whose output the loss reads (1-based)."""
    heads: tuple[int, ...] = ()
    """Student layers whose queries and keys the loss reads (1-based)."""
    outputs: tuple[int, ...] = ()
    """Layers (1-based) with a further final layer, whose velocity the loss or `velocity` reads. They are part
    of the network from the first step to the last, and so of its checkpoints, EMA and cost."""
    fused: tuple[int, ...] = ()
    """First and last block (1-based) whose output is joined with the tokens before them, by a learned mask
    token and a linear layer (harness/backbone/routing.py). They too are part of the network; () for none."""
    undropped: bool = False
    """Put texts before drop into the batch, where labels before drop always are."""
    group: int = 1
    """Number of consecutive samples that the loss compares with each other; no micro-batch splits them."""
    guided: float | None = None
    """Scale of the guidance of an encoder's features, which are then those of the student's noised samples
    under their conditions: f_null + scale (f_condition - f_null). None for features of clean samples."""
    features: int = 0
    """Number of channels of an encoder's features that the network generates together with the sample."""

    @property
    def generates(self) -> bool:
        """True if the network generates an encoder's output too, which evaluations cannot compute."""
        return self.summary or self.features > 0


class Schedule(Section):
    """Schedule of the alignment weight, an option of every method. Early stop: HASTE, arXiv 2505.16792."""

    until: int | None = Field(default=None, ge=0)
    """Last step with alignment; after it neither teacher nor encoder runs. None for every step."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the weight rises linearly to its full value."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Decay of the weight to zero between warm-up and `until`."""

    @model_validator(mode="after")
    def _decay_has_an_end(self) -> Self:
        if self.decay != "none" and (self.until is None or self.until <= self.warmup):
            raise ValueError(f"decay = '{self.decay}' requires `until` > {self.warmup} (the warm-up)")
        return self

    def factor(self, step: int) -> float:
        """Return the factor of the weight at a step (1-based), in [0, 1]."""
        if self.until is not None and step > self.until:
            return 0.0
        if step < self.warmup:
            return step / self.warmup
        if self.decay == "none" or self.until is None:
            return 1.0
        left = (self.until - step) / (self.until - self.warmup)
        return left if self.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


class MethodConfig(Section):
    """Base of every method's Config."""

    # Any: values of any setting.
    off: ClassVar[dict[str, Any]] = {}
    """Settings under which the method is plain flow matching, bit for bit."""
    # Any: rows of the search space, as a study's TOML file has them.
    space: ClassVar[dict[str, Any]] = {}
    """Search space of `flowrace tune`, around the published values: setting -> `low`, `high` and perhaps
    `log`, or `choices`."""

    # Any: each method narrows it to a Literal of its name, which the type of a mutable field would forbid.
    name: Any
    """Registered name of the method, see `flowrace list methods`."""
    schedule: Schedule = Schedule()

    @property
    def strength(self) -> float:
        """Weight of the alignment term before its schedule; 0 for a method without alignment."""
        return 0.0

    @property
    def scheduled(self) -> bool:
        """True if `schedule` has an effect on these settings."""
        return type(self).strength is not MethodConfig.strength

    @property
    def until(self) -> int | None:
        """The last step of what the schedule ends; None if it does not end."""
        return self.schedule.until

    @property
    def horizon(self) -> str:
        """The setting by which a step depends on the number of steps of the run; empty if none does."""
        return ""

    @property
    def unguided(self) -> str:
        """The reason why nothing guides at sampling with these settings; empty if something may."""
        return "is switched off" if self.is_off else ""

    @property
    def is_off(self) -> bool:
        """True if these settings make the method plain flow matching."""
        off = type(self).off
        return bool(off) and all(getattr(self, name) == value for name, value in off.items())

    def weight(self, step: int) -> float:
        """Return the weight of the alignment term at a step (1-based)."""
        return self.strength * self.schedule.factor(step)

    def flow_weight(self, step: int) -> float:
        """Return the weight of the flow loss at a step (1-based), 1 by default."""
        return 1.0

    def encodes(self, step: int) -> bool:
        """Return whether the encoders run at a step (1-based)."""
        return bool(self.needs().encoders) and self.weight(step) > 0

    @property
    def terms(self) -> Mapping[str, MethodConfig]:
        """The settings of each term of a stack, by name; of a single method, its own."""
        return {self.name: self}

    def resolved(self, backbone: BackboneSpec) -> Self:
        """Return the config with every default filled in that depends on the backbone.

        Raises ValueError ("field = value: what is allowed") for a setting that this backbone cannot have.
        """
        if self.schedule != Schedule() and not self.scheduled:
            raise ValueError(f"schedule: {self.name} has no alignment term to schedule; leave it out")
        return self

    def needs(self) -> Needs:
        """Return the requirements of these settings while they align; plain flow matching has none."""
        return Needs()
