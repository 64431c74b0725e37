"""Flat names for the MLflow store: spec fields as params, numbers of events as metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from harness.records.record import tracked_name


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one table, with keys joined by dots.

    >>> flatten({"a": {"b": 1}, "c.d": 2})
    {'a.b': 1, 'c.d': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def points(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an event by their names in the store.

    Numbers that are not finite are left out; `not_finite` lists them.
    """
    return {tracked_name(name): float(value) for name, value in _metrics(event).items() if _is_number(value)}


def not_finite(events: Iterable[Mapping[str, Any]]) -> str:
    """Return the metrics that are NaN or infinite, as text, since MLflow stores would change their values.

    >>> not_finite([{"kind": "train", "step": 3, "loss": float("nan"), "flops": 8}])
    'train/loss at step 3: nan'
    """
    return "; ".join(
        f"{name} at step {event['step']}: {value}"
        for event in events
        for name, value in _metrics(event).items()
        if isinstance(value, float) and not math.isfinite(value)
    )


def _metrics(event: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if event["kind"] == "train":
        found = {f"train/{name}": event.get(name) for name in ("loss", "grad_norm", "learning_rate")}
        found |= {f"train/losses/{name}": value for name, value in event.get("losses", {}).items()}
        found |= {f"cost/seconds/{name}": value for name, value in event.get("seconds", {}).items()}
        found["cost/flops"] = event.get("flops")
    elif event["kind"] == "eval":
        for name, value in event["metrics"].items():
            found |= {f"eval/{name}": value["mean"]}
            found |= {f"eval/{name}/{end}": value.get(end) for end in ("low", "high")}
    elif event["kind"] == "gradients":
        found = {f"gradients/{name}": value for name, value in gradient_values(event).items()}
    return found


def gradient_values(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a reading of gradients by path, for example `norms/flow` and `reached/share`."""
    values = {name: event[name] for name in ("share", "cosine") if name in event}
    for table in ("norms", "reached", "losses", "features", "sameness"):
        values |= {f"{table}/{name}": value for name, value in event.get(table, {}).items()}
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
