"""The protocol of one metric: the part of a run's evaluation protocol that the metric's value depends on.

Two runs may be evaluated by different lists of metrics, for example videos with sound and sound alone. A
metric that both have is comparable if its own network, settings and samples are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from harness.records.evaluations import SUCCESS, belongs, recorded_name
from harness.records.measured import protocol_hashes
from harness.records.record import Record

OF_SUCCESS = ("sampler", "n_fake", "ema_precision")
"""Prefixes of the fields of a protocol that success depends on, with its own description."""
OF_VIDEO = ("video:", "i3d", "videomae")
"""Prefixes of the names of networks that read clips."""


def protocols_of(record: Record, metric: str) -> dict[str, Mapping[str, Any]]:
    """Return the protocols under which a run's values of a metric were measured, fields by hash.

    If a record does not contain the protocol itself, its fields are only the hash.
    """
    metric = recorded_name(metric)
    known = {key: about["protocol"] for key, about in record.protocols.items() if "protocol" in about}
    protocols: dict[str, Mapping[str, Any]] = {}
    for key in protocol_hashes(record, metric):
        if key in known:
            fields = narrowed(known[key], metric)
            protocols[_digest(fields) if fields != known[key] else key] = fields
        else:
            protocols[key] = {"hash": key}
    return protocols


def narrowed(protocol: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return the protocol as it would be with this metric alone, on samples with only the part that its
    network reads."""
    if metric.startswith(SUCCESS):
        return _of_success(protocol, metric)
    value, _, name = metric.partition(":")
    fields = dict(protocol) | ({"metrics": [metric]} if "metrics" in protocol else {})
    extractors, truths = protocol.get("extractors", {}), protocol.get("truths", {})
    fields["extractors"] = {key: x for key, x in extractors.items() if key == name or name not in extractors}
    fields["settings"] = {key: x for key, x in protocol.get("settings", {}).items() if key == value}
    fields["truths"] = {key: x for key, x in truths.items() if belongs(metric, key)}
    if fields["truths"]:
        fields["extractors"] = {}
    elif "beside" in protocol and name in extractors:
        shapes = [protocol["shape"], *fields.pop("beside")]
        clips = name.startswith(OF_VIDEO)
        fields["shape"] = next(shape for shape in shapes if (len(shape) == 4) == clips)
    return {key: x for key, x in fields.items() if key in protocol and (x or key != "truths")}


def _of_success(protocol: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return what success depends on: sampler, task, starts and noise, and neither data nor real samples."""
    truths = {key: x for key, x in protocol.get("truths", {}).items() if belongs(metric, key)}
    kept = {name: x for name, x in protocol.items() if name.startswith(OF_SUCCESS)}
    return {**kept, "metrics": [metric], "truths": truths}


def _digest(protocol: Mapping[str, Any]) -> str:
    """Return the hash of a protocol, computed as the harness does."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]
