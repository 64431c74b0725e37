"""The conditions under which the values of a race were measured: sampler, steps, guidance and n, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.records.record import Record
from reports.race.protocols import protocols_of

FIELDS = ("sampler", "sampler_steps", "guidance", "guidance_low", "guidance_high", "labels", "n_fake")
"""The fields of a protocol that a reader needs next to a number, in order."""
FULL = {"guidance_low": 0.0, "guidance_high": 1.0}
"""Values that need no mention: guidance at all times."""


def conditions_of(record: Record, metric: str) -> list[dict[str, Any]]:
    """Return the conditions of a run's values of a metric, from its recorded protocols or else its spec."""
    spec = dict(record.spec.get("eval", {}))
    values = [e["metrics"][metric] for e in record.of("eval") if metric in e["metrics"]]
    n = {"n_fake": values[-1]["n"]} if values and values[-1].get("n") else {}
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
        "guidance": f"guidance {text}",
        "guidance_low": f"from time {text}",
        "guidance_high": f"up to time {text}",
        "labels": f"{text} labels",
        "n_fake": f"n = {text} samples",
    }[name]


def _value(value: Any) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
    )
