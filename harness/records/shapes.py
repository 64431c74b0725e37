"""The shapes of what a record holds, checked when it is read: a record may come from a stranger.

Every check returns the fault in words, or an empty text. Fields that nothing reads are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

# Any: values of JSON and TOML.
from typing import Any

SECTIONS = ("data", "backbone", "method", "time", "train", "ema", "start", "eval", "runtime")
LARGEST = 1e300
"""Numbers of records are below it, so that sums and ratios of them are finite."""
NUMBERS = (float, int)
"""The types of numbers; a bool is of another one. Comparisons with NaN are false."""
TRAIN_NUMBERS = ("loss", "grad_norm", "learning_rate")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return type(value) in NUMBERS and -LARGEST < value < LARGEST


def is_value(value: Any) -> bool:
    """Return whether a value is a number; metrics and losses of a run that diverged may not be finite."""
    return is_number(value) or (type(value) is float and not math.isfinite(value))


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0 to 2^63 - 1."""
    return type(value) is int and 0 <= value < 2**63


def event_fault(event: Any) -> str:
    """Return why a value is no event of a record."""
    if not (isinstance(event, dict) and isinstance(event.get("kind"), str)):
        return "is not an event (a JSON object with kind and step)"
    if not is_count(event.get("step")):
        return "is not an event (a JSON object with kind and step): its step is no whole number"
    for name in ("images", "flops"):
        if name in event and not is_amount(event[name]):
            return f"has {name} that are no number"
    if "seconds" in event and not _are_numbers(event["seconds"], is_amount):
        return "has seconds that are no table of numbers"
    if event["kind"] == "train":
        return _train_fault(event)
    if event["kind"] == "gradients":
        return _gradients_fault(event)
    return _eval_fault(event) if event["kind"] == "eval" else ""


def is_amount(value: Any) -> bool:
    """Return whether a value is a number that is not negative."""
    return type(value) in NUMBERS and 0 <= value < LARGEST


def _train_fault(event: Mapping[str, Any]) -> str:
    if not is_value(event.get("loss")):
        return "has a loss that is no number"
    if any(event.get(name) is not None and not is_value(event[name]) for name in TRAIN_NUMBERS):
        return f"has a value of {', '.join(TRAIN_NUMBERS)} that is no number"
    losses = event.get("losses", {})
    return "" if _are_numbers(losses, is_value) else "has losses that are no table of numbers"


def _gradients_fault(event: Mapping[str, Any]) -> str:
    """Return the fault of a reading of gradients, whose numbers may be undefined (null)."""

    def known(value: Any) -> bool:
        return value is None or is_number(value)

    for name in ("norms", "reached", "losses", "features", "sameness"):
        if not _are_numbers(event.get(name, {}), known):
            return f"has {name} that are no table of numbers"
    if not all(known(event.get(name)) for name in ("share", "cosine", "reading_flops")):
        return "has a share, cosine or reading_flops that is no number"
    return ""


def _eval_fault(event: Mapping[str, Any]) -> str:
    metrics, errors = event.get("metrics", {}), event.get("errors", {})
    if not isinstance(metrics, dict):
        return "has metrics that are no table"
    for name, row in metrics.items():
        if not (isinstance(row, dict) and is_value(row.get("mean"))):
            return f"has a metric '{name}' without a mean"
        low, high, n = row.get("low"), row.get("high"), row.get("n")
        if not ((low is None or is_value(low)) and (high is None or is_value(high))):
            return f"has a metric '{name}' whose interval is no pair of numbers"
        if not (n is None or is_count(n)):
            return f"has a metric '{name}' whose n is no whole number"
        if "replicates" in row and not _is_list_of(row["replicates"], is_value):
            return f"has a metric '{name}' whose replicates are no numbers"
        if not _is_successes(row.get("successes", "")):
            return f"has a metric '{name}' whose successes are no text of 0 and 1"
    if not (isinstance(errors, dict) and all(isinstance(text, str) for text in errors.values())):
        return "has errors that are no table of texts"
    return "" if isinstance(event.get("protocol", ""), str) else "has a protocol that is no text"


def _is_successes(value: Any) -> bool:
    return isinstance(value, str) and not value.strip("01")


def spec_fault(spec: Mapping[str, Any]) -> str:
    """Return why a table is no spec of a run; fields of other versions are accepted."""
    for name in SECTIONS:
        if not isinstance(spec.get(name, {}), Mapping):
            return f"{name} is no table"
    if "seed" in spec and not (type(spec["seed"]) is int and spec["seed"] >= 0):
        return "seed is no whole number"
    if not isinstance(spec.get("method", {}).get("name", ""), str):
        return "method.name is no text"
    train, asked = spec.get("train", {}), spec.get("eval", {})
    for name in ("steps", "batch_size"):
        if name in train and not (is_count(train[name]) and train[name] > 0):
            return f"train.{name} is no whole number above 0"
    for name in ("samples", "sampler_steps", "seed", "every", "replicates"):
        if name in asked and not is_count(asked[name]):
            return f"eval.{name} is no whole number"
    scales = ("guidance", "method_guidance")
    numbers = [f"{scale}{end}" for scale in scales for end in ("", "_low", "_high")]
    for name in (*numbers, "sampler_shift"):
        several = asked.get(name) if name == "guidance" else None
        if isinstance(several, list | tuple) and several and all(map(is_number, several)):
            continue
        if name in asked and not is_number(asked[name]):
            return f"eval.{name} is no finite number"
    for name in ("sampler", "labels", "precision", "reference"):
        if not isinstance(asked.get(name, ""), str):
            return f"eval.{name} is no text"
    metrics = asked.get("metrics", [])
    return (
        "" if _is_list_of(metrics, lambda name: isinstance(name, str)) else "eval.metrics is no list of names"
    )


def environment_fault(starts: Any) -> str:
    """Return why a value is no list of a run's starts."""
    if not (isinstance(starts, list) and all(isinstance(start, dict) for start in starts)):
        return "is no list of the starts of a run"
    for start in starts:
        for name in ("packages", "evaluation"):
            if not isinstance(start.get(name, {}), dict):
                return f"has a start whose {name} is no table"
        for name in ("started", "threads", "devices", "steps", "after_step", "params", "train_samples"):
            if start.get(name) is not None and not is_amount(start[name]):
                return f"has a start whose {name} is no number"
        for name in ("device", "device_name", "data_fingerprint"):
            if not isinstance(start.get(name, ""), str | None):
                return f"has a start whose {name} is no text"
        if "evaluation" in start and (fault := protocol_fault(start["evaluation"])):
            return f"has a start whose evaluation {fault}"
    return ""


def protocol_fault(about: Any) -> str:
    """Return why a value is not the record of a protocol: its hash, fields, noise floors, aligned metrics."""
    if not isinstance(about, dict) or not isinstance(about.get("hash", ""), str):
        return "is no table with a hash"
    if not all(isinstance(about.get(name, {}), dict) for name in ("protocol", "floor")):
        return "has no table of its protocol"
    if not _is_list_of(about.get("aligned", []), lambda name: isinstance(name, str)):
        return "has no list of aligned metrics"
    protocol = about.get("protocol", {})
    conditions = {**protocol, "samples": protocol.get("n_fake", 0)}
    return spec_fault(
        {"eval": {name: v for name, v in conditions.items() if name != "metrics" and v is not None}}
    )


def _are_numbers(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(check, value.values()))


def _is_list_of(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(check, value))
