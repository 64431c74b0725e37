"""Under which protocol a metric was measured: the part of a run's evaluation protocol that its value
depends on.

Two runs may be evaluated by different lists of metrics, a video with its sound and the sound alone say; a
metric that both have is comparable where its own network, settings and samples are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from harness.records.record import Record

OF_VIDEO = ("video:", "i3d", "videomae")
"""How the names of networks begin that read clips."""


def protocols_of(record: Record, metric: str) -> dict[str, Mapping[str, Any]]:
    """Return hash -> fields of the protocols of a run's values of a metric.

    For a record without its protocol, the fields contain only the hash of its evaluations.
    """
    recorded = [start.get("evaluation", {}) for start in record.environment]
    known = {about["hash"]: about["protocol"] for about in recorded if "protocol" in about}
    found: dict[str, Mapping[str, Any]] = {}
    for one in {str(e.get("protocol")) for e in record.of("eval") if metric in e["metrics"]}:
        if one in known:
            fields = narrowed(known[one], metric)
            found[_digest(fields) if fields != known[one] else one] = fields
        else:
            found[one] = {"hash": one}
    return found


def narrowed(protocol: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """Return the protocol as it would be if this metric had been the only one, of samples that are only
    what its network reads."""
    value, _, name = metric.partition(":")
    fields = dict(protocol) | ({"metrics": [metric]} if "metrics" in protocol else {})
    extractors, truths = protocol.get("extractors", {}), protocol.get("truths", {})
    fields["extractors"] = {key: x for key, x in extractors.items() if key == name or name not in extractors}
    fields["settings"] = {key: x for key, x in protocol.get("settings", {}).items() if key == value}
    fields["truths"] = {key: x for key, x in truths.items() if key == metric}
    if metric in truths:
        fields["extractors"] = {}
    elif "beside" in protocol and name in extractors:
        shapes = [protocol["shape"], *fields.pop("beside")]
        clips = name.startswith(OF_VIDEO)
        fields["shape"] = next(shape for shape in shapes if (len(shape) == 4) == clips)
    return {key: x for key, x in fields.items() if key in protocol and (x or key != "truths")}


def _digest(protocol: Mapping[str, Any]) -> str:
    """Return the harness's hash: the same fields, the same hash."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]
