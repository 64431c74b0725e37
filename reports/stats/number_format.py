"""Numbers as text: quantities with their unit, factors, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports.stats.speedup import Speedup

_SCALES = {
    "steps": ((1.0, ""),),
    "images": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, "")),
    "flops": (
        (1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"),
    ),
    "seconds": ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")),
}  # fmt: skip


_SCALES["gpu_seconds"] = tuple((size, f"device-{unit}") for size, unit in _SCALES["seconds"])


def quantity(axis: str, value: float) -> str:
    """Return a cost with its unit, to three digits.

    >>> quantity("steps", 1240.4), quantity("flops", 1.234e12), quantity("seconds", 99)
    ('1,240', '1.23 TFLOP', '1.65 min')
    """
    if axis == "steps":
        return f"{value:,.0f}"
    size, unit = unit_of(axis, value)
    return f"{digits(value / size)} {unit}".rstrip()


def unit_of(axis: str, value: float) -> tuple[float, str]:
    """Return the unit for a cost of this size: (its size, its name)."""
    return next((scale for scale in _SCALES[axis] if abs(value) >= scale[0]), _SCALES[axis][-1])


def column_unit(axis: str, values: Sequence[float]) -> tuple[float, str]:
    """Return one unit for the costs of a column: that of their geometric mean.

    >>> column_unit("seconds", [840.0, 11520.0])
    (60.0, 'min')
    """
    known = [abs(value) for value in values if value]
    return unit_of(axis, math.exp(sum(map(math.log, known)) / len(known)) if known else 1.0)


def digits(value: float) -> str:
    """Return three significant digits, without an exponent and without inventing zeros."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-12))
    return f"{value:,.{decimals}f}"


def gain_suffix(gain: Speedup | None) -> str:
    """Return a speed-up as a short suffix; empty without an estimate.

    >>> gain_suffix(Speedup(1.314, 1.18, 1.452, 3, True, 0, 0, None))
    ' · 1.31× [1.18, 1.45]'
    """
    if gain is None or gain.estimate is None:
        return ""
    return f" · {factor(gain.estimate)}× {interval(gain.low, gain.high)}".rstrip()


def factor(value: float) -> str:
    """Return a ratio with two decimals, or with three digits from 10 on.

    >>> factor(1.3149), factor(17.46)
    ('1.31', '17.5')
    """
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def interval(low: float | None, high: float | None) -> str:
    """Return an interval of ratios, with a round bracket at an open end; empty without an interval."""
    if low is None or high is None:
        return ""
    left = "(0" if low == 0 else f"[{factor(low)}"
    right = "∞)" if math.isinf(high) else f"{factor(high)}]"
    return f"{left}, {right}"
