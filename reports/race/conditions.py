"""The conditions under which the values of a race were measured: sampler, steps, guidance and n, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from harness.errors import UserError, unknown
from harness.records.evaluations import Conditions, first_scale, varied
from harness.records.measured import last_evaluation, last_row
from harness.records.record import Record
from reports.race.protocols import protocols_of

FIELDS = (
    "sampler",
    "sampler_steps",
    "sampler_shift",
    "guidance",
    "guidance_low",
    "guidance_high",
    "method_guidance",
    "method_guidance_low",
    "method_guidance_high",
    "labels",
    "n_fake",
)
"""The fields of a protocol that a reader needs next to a number, in order."""
SETTINGS = tuple(field.name for field in fields(Conditions) if field.name not in ("ema", "protocol"))
"""The names that `--protocol` accepts."""
FULL = {
    "sampler_shift": 1.0,
    "guidance_low": 0.0,
    "guidance_high": 1.0,
    "method_guidance": 1.0,
    "method_guidance_low": 0.0,
    "method_guidance_high": 1.0,
}
"""Values that need no mention: even times, guidance at all times, and no guidance of the method."""


def conditions_of(record: Record, metric: str) -> list[dict[str, Any]]:
    """Return the conditions of a run's values of a metric, from its recorded protocols or else its spec."""
    spec = dict(record.spec.get("eval", {}))
    if "guidance" in spec:
        spec["guidance"] = first_scale(spec["guidance"])
    last = last_row(record, metric) or {}
    n = {"n_fake": last["n"]} if last.get("n") else {}
    tables = [spec if "sampler" not in fields else fields for fields in protocols_of(record, metric).values()]
    return [n | {name: table[name] for name in FIELDS if name in table} for table in tables]


def text_of(found: Iterable[Mapping[str, Any]]) -> str:
    """Return conditions as text, for example `heun, 50 steps, guidance 1.5, n = 10,000 samples`."""
    tables = list(found)
    values = {name: list(dict.fromkeys(table[name] for table in tables if name in table)) for name in FIELDS}
    parts = [_part(name, own) for name, own in values.items() if own and own != [FULL.get(name)]]
    return ", ".join(parts)


def _part(name: str, values: Sequence[Any]) -> str:
    text = " or ".join(_value(value) for value in values)
    return {
        "sampler": f"sampler {text}",
        "sampler_steps": f"{text} steps",
        "sampler_shift": f"time shift {text}",
        "guidance": f"guidance {text}",
        "guidance_low": f"from time {text}",
        "guidance_high": f"up to time {text}",
        "method_guidance": f"the method's guidance {text}",
        "method_guidance_low": f"from time {text}",
        "method_guidance_high": f"up to time {text}",
        "labels": f"{text} labels",
        "n_fake": f"n = {text} samples",
    }[name]


def _value(value: Any) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def select(records: Sequence[Record], text: str) -> list[Record]:
    """Return the records under the conditions of `--protocol`, for example `guidance=1.5`.

    A run's other settings stay those of its spec as far as it was evaluated under them. Raises `UserError`
    for an invalid text, and if no run was evaluated under such conditions.
    """
    wanted = parse_protocol(text)
    found = []
    for record in records:
        matching = [one for one in record.views if _fits(one, wanted)]
        own = record.shown_conditions
        nearest = min(matching, key=lambda one: len(varied([one, own])), default=None)
        # Conditions that the run does not have leave it without evaluations.
        found.append(record.under(nearest or absent(text)))
    if all(last_evaluation(record) is None for record in found):
        every = list(dict.fromkeys(view for record in records for view in record.views))
        known = "; ".join(one.name(every) or "a single set of conditions" for one in every)
        raise UserError(f"--protocol {text}: no run was evaluated under it (evaluated under: {known})")
    return found


def parse_protocol(text: str) -> dict[str, str]:
    """Return settings by name from `NAME=VALUE[,NAME=VALUE]`; raises `UserError` for anything else."""
    found = {}
    for part in text.split(","):
        name, sign, value = (word.strip() for word in part.partition("="))
        if not (sign and value):
            raise UserError(f"--protocol {text}: expected NAME=VALUE, for example guidance=1.5")
        if name not in SETTINGS:
            raise unknown("setting of a protocol", name, SETTINGS)
        found[name] = value
    return found


def absent(name: str) -> Conditions:
    """Return conditions that no record has, so that a record under them has no evaluations."""
    return Conditions("", 0, 1.0, 0.0, 1.0, "", 0, 0, "", protocol=name)


def _fits(conditions: Conditions, wanted: Mapping[str, str]) -> bool:
    return all(_equal(getattr(conditions, name), value) for name, value in wanted.items())


def _equal(value: object, text: str) -> bool:
    if isinstance(value, float | int):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    return str(value) == text
