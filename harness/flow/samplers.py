"""Samplers, which integrate dx/dt = v(x, t) from t = 1 (noise) to t = 0 (data).

They are functions of a velocity field `v(x, t)`, with x (B, C, H, W) and t a number. The state has type
`dtype`, by default float64 as in REPA's samplers.py; the network's input is float32.

    euler              x <- x + (t' - t) v
    heun               mean of the slopes at both ends; the last step is Euler's
    euler_maruyama     SDE with diffusion w(t) = 2 t on t = 1 .. 0.04, then one drift step to 0
                       (REPA samplers.py; the same arithmetic as SiT's and Self-Flow's "sigma" SDE
                       with last step "Mean")

`shift` moves the grid of times towards noise: t = s(shift, u) on an even grid of u, with s of path.py. The
first and the last time stay where they are (RAE integrators.py; diffusers' flow-matching schedulers).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from harness.backbone.condition import Condition, SharedText, Text, shared
from harness.backbone.network import Prediction
from harness.backbone.times import Times
from harness.flow.path import shifted

Velocity = Callable[[Tensor, float], Tensor]
Noise = Callable[[int, Tensor], Tensor]
"""Function of step i and the state, which returns standard normal noise shaped like the state."""

SDE_LAST = 0.04
"""Time at which the SDE's noise ends, because its score -(x + (1 - t) v) / t is not defined at 0."""


class Network(Protocol):
    """A network as a sampler calls it. Keyword arguments are those of `Backbone.forward`."""

    # Any: `outputs` and the others have different types.
    def __call__(self, x: Tensor, times: Times, y: Condition | SharedText, **asked: Any) -> Prediction: ...


class Rule(Protocol):
    """The velocity that a sampler integrates; `TrainingMethod.velocity` is one."""

    def __call__(
        self,
        model: Network,
        x: Tensor,
        times: Times,
        y: Condition | SharedText,
        *,
        scale: float = 1.0,
        null: Condition | SharedText | None = None,
    ) -> Tensor: ...


def plain(
    model: Network,
    x: Tensor,
    times: Times,
    y: Condition | SharedText,
    *,
    scale: float = 1.0,
    null: Condition | SharedText | None = None,
) -> Tensor:
    """Return the network's velocity, the rule of a method that has no other."""
    return model(x, times, y).velocity


class Interval(NamedTuple):
    """The scale of a guidance, which is 1 outside of an interval of times."""

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def at(self, t: float) -> float:
        """Return the scale at a time; 1 is no guidance."""
        return self.scale if self.low <= t <= self.high else 1.0


ALWAYS_OFF = Interval()


class Sampler(Protocol):
    """The signature that all samplers share."""

    def __call__(
        self,
        v: Velocity,
        x: Tensor,
        steps: int,
        *,
        noise: Noise,
        shift: float = ...,
        dtype: torch.dtype = ...,
    ) -> Tensor: ...


def euler(
    v: Velocity,
    x: Tensor,
    steps: int,
    *,
    noise: Noise | None = None,
    shift: float = 1.0,
    dtype=torch.float64,
) -> Tensor:
    """Return samples after `steps` Euler steps, which take one network pass each."""
    x = x.to(dtype)
    for t, t_next in _pairs(_times(0.0, steps + 1, shift)):
        x = x + (t_next - t) * _slope(v, x, t)
    return x


def heun(
    v: Velocity,
    x: Tensor,
    steps: int,
    *,
    noise: Noise | None = None,
    shift: float = 1.0,
    dtype=torch.float64,
) -> Tensor:
    """Return samples after `steps` Heun steps, which take 2 `steps` - 1 network passes."""
    x = x.to(dtype)
    for t, t_next in _pairs(_times(0.0, steps + 1, shift)):
        d = _slope(v, x, t)
        if t_next > 0:
            d = 0.5 * (d + _slope(v, x + (t_next - t) * d, t_next))
        x = x + (t_next - t) * d
    return x


def euler_maruyama(
    v: Velocity, x: Tensor, steps: int, *, noise: Noise, shift: float = 1.0, dtype=torch.float64
) -> Tensor:
    """Return samples of the SDE after `steps` network passes; step i adds `noise(i, x)`."""
    x = x.to(dtype)
    times = _times(SDE_LAST, steps, shift)
    for i, (t, t_next) in enumerate(_pairs(times)):
        x = x + (t_next - t) * _drift(v, x, t) + (2 * t * (t - t_next)) ** 0.5 * noise(i, x).to(x)
    # This is SDE_LAST, except that linspace of a single step gives 1.
    last = times[-1].item()
    return x - last * _drift(v, x, last)


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "euler_maruyama": euler_maruyama}


def velocity_field(
    model: Network,
    y: Condition,
    *,
    null: int | Text,
    scale: float = 1.0,
    low: float = 0.0,
    high: float = 1.0,
    rule: Rule = plain,
    own: Interval = ALWAYS_OFF,
) -> Velocity:
    """Return v(x, t) of a network for conditions y of B samples, with classifier-free guidance while
    low <= t <= high.

    `rule` returns the velocity from the network, and `own` is the scale of the method's guidance. With both
    guidances, the rule applies to the two velocities that classifier-free guidance combines.

    v = v_null + scale (v_cond - v_null); scale 1 is no guidance. The interval is that of Kynkaanniemi et al.,
    arXiv 2404.07724. `null` is the null label, or the empty caption as a text of one sample. All samples have
    one time and the null half has one text, so what depends on those alone is computed for one row.
    """
    single, both = _single_and_both(y, null)
    guidance, without = Interval(scale, low, high), _null_of(y, null) if own.scale != 1.0 else None

    def v(x: Tensor, t: float) -> Tensor:
        # The labels of samples differ, and are added to the time. Texts are not.
        rows = len(x) if isinstance(y, Tensor) else 1
        level = x.new_full((rows,), t, dtype=torch.float32)
        if guidance.at(t) == 1.0:
            return rule(model, x, Times.per_sample(level), single, scale=own.at(t), null=without)
        level = level.repeat(2) if isinstance(y, Tensor) else level
        twice = None if without is None else _repeated(without)
        velocity = rule(model, torch.cat([x, x]), Times.per_sample(level), both, scale=own.at(t), null=twice)
        conditional, null_velocity = velocity.chunk(2)
        return null_velocity + scale * (conditional - null_velocity)

    return v


def _single_and_both(y: Condition, null: int | Text) -> tuple[Tensor, Tensor] | tuple[SharedText, SharedText]:
    """Return the conditions of a pass without guidance, and those of one with the null condition too.

    Raises TypeError unless the null condition is of the condition's kind.
    """
    if isinstance(y, Tensor) and isinstance(null, int):
        return y, torch.cat([y, torch.full_like(y, null)])
    if isinstance(y, Text) and isinstance(null, Text):
        single = shared(y)
        return single, single.with_text(null)
    raise TypeError(f"the null condition of {type(y).__name__} cannot be {type(null).__name__}")


def _null_of(y: Condition, null: int | Text) -> Tensor | SharedText:
    """Return the null condition for each of the samples of y."""
    if isinstance(null, int):
        return torch.full(
            (len(y),), null, dtype=torch.int64, device=y.device if isinstance(y, Tensor) else None
        )
    return SharedText(null, torch.zeros(len(y), dtype=torch.int64, device=null.features.device))


def _repeated(null: Tensor | SharedText) -> Tensor | SharedText:
    """Return a null condition for twice the number of samples."""
    if isinstance(null, Tensor):
        return null.repeat(2)
    return SharedText(null.distinct, null.rows.repeat(2))


def _times(last: float, count: int, shift: float) -> Tensor:
    """Return `count` times from 1 to `last`, evenly spaced before their shift, float64."""
    return shifted(torch.linspace(1, last / (shift - (shift - 1) * last), count, dtype=torch.float64), shift)


def _slope(v: Velocity, x: Tensor, t: float) -> Tensor:
    return v(x.float(), t).to(x.dtype)


def _drift(v: Velocity, x: Tensor, t: float) -> Tensor:
    """Return v - w/2 score with w = 2 t and score = -(x + (1 - t) v) / t."""
    velocity = _slope(v, x, t)
    score = -(x + (1 - t) * velocity) / t
    return velocity - t * score


def _pairs(times: Tensor) -> Iterator[tuple[float, float]]:
    return itertools.pairwise(times.tolist())
