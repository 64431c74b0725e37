"""The provenance of a report: how the arms differ, software and hardware, and how to recreate the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from harness.records.record import Record
from reports.analysis.report import RaceReport
from reports.pages.section import render_template
from reports.race.arms import differences
from reports.race.comparability import machines_of, protocol_hashes
from reports.stats.number_format import digits


def provenance_section(report: RaceReport, command: str) -> Markup:
    """Return the section; `command` recreates the page."""
    differing = differences(report.race.arms)
    return render_template(
        "provenance", report.race, differences=differing, facts=_facts(report), command=command
    )


def _facts(report: RaceReport) -> list[tuple[str, list[str]]]:
    """Return the software, hardware and data of the runs, each value once; host names are left out."""
    starts = [start for run in report.race.runs for start in run.record.environment]
    python = [f"python {start['python']}" for start in starts if "python" in start]
    packages = [f"{name} {number}" for start in starts for name, number in start.get("packages", {}).items()]
    machines = [text for run in report.race.runs for text in machines_of(run.record)]
    encoders = [_encoder(encoder) for start in starts for encoder in start.get("encoders", ())]
    facts = {
        "Packages": [", ".join(dict.fromkeys([*python, *packages]))],
        "Code": [str(start["code"]) for start in starts if start.get("code")],
        "Hardware": machines,
        "Data (fingerprint)": [str(s["data_fingerprint"]) for s in starts if "data_fingerprint" in s],
        "Encoders": encoders,
        "Evaluation protocol": protocol_hashes(report.race.runs),
        "Not finished": [_unfinished(row) for row in report.run_rows if row["status"] != "done"],
        "Restarts": [_restarts(run.record) for run in report.race.runs if len(run.record.environment) > 1],
    }
    return [(name, sorted(set(values))) for name, values in facts.items() if any(values)]


def _unfinished(row: Mapping[str, Any]) -> str:
    """Describe a run that failed, stopped or never began, with its last value and the reason."""
    reached = f", last value {digits(row['final'])}" if row["final"] is not None else ""
    reason = f": {row['reason']}" if row["reason"] else ""
    return f"{row['method']} seed {row['seed']} ({row['run']}) {row['status']}{reached}{reason}"


def _encoder(encoder: Mapping[str, Any]) -> str:
    parts = [str(encoder.get("name"))]
    parts += [f"{encoder['params']:,} parameters"] if encoder.get("params") else []
    parts += [f"held-out accuracy {encoder['accuracy']:.1%}"] if encoder.get("accuracy") is not None else []
    parts += [f"held-out R2 {encoder['r2']:.3f}"] if encoder.get("r2") is not None else []
    return ", ".join(parts + ([f"sha256 {encoder['sha256'][:12]}"] if encoder.get("sha256") else []))


def _restarts(record: Record) -> str:
    steps = ", ".join(str(start.get("after_step", "?")) for start in record.environment[1:])
    return f"{record.id} continued after step {steps}"
