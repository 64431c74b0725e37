"""A look at the installation: what works here, and what is missing with the way to get it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import requires
from pathlib import Path
from typing import Literal, NamedTuple

import click
import torch
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

from harness.config.options import JSON_OPTION
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.runtime.environment import code_version, cores, device_name, package_version


class Finding(NamedTuple):
    state: Literal["ok", "note", "bad"]
    what: str
    text: str


def examine() -> list[Finding]:
    """Every finding, in the order a reader would ask."""
    code = code_version()
    found = [
        Finding("ok", "flowrace", f"{package_version('flowrace')}" + (f", commit {code}" if code else "")),
        Finding("ok", "python", platform.python_version()),
        *_packages(),
        *_devices(),
        _disk(),
        _cache(),
    ]
    return found


def _packages() -> list[Finding]:
    findings = []
    for text in requires("flowrace") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        have = package_version(wanted.name)
        if have is None:
            findings.append(Finding("bad", wanted.name, f"missing; pip install '{text}'"))
        elif not wanted.specifier.contains(have, prereleases=True):
            findings.append(Finding("bad", wanted.name, f"{have} is too old; pip install '{text}'"))
        else:
            findings.append(Finding("ok", wanted.name, have))
    return findings


def _devices() -> list[Finding]:
    cpu = Finding("ok", "cpu", f"{cores()} cores, {torch.backends.cpu.get_cpu_capability()}")
    if not torch.cuda.is_available():
        return [cpu, Finding("note", "cuda", "no GPU: runs go to the CPU")]
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    memory = [torch.cuda.get_device_properties(gpu).total_memory / 2**30 for gpu in gpus]
    return [
        cpu,
        *(Finding("ok", str(g), f"{device_name(g)}, {m:.0f} GiB") for g, m in zip(gpus, memory, strict=True)),
    ]


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    writable = os.access(Path.cwd(), os.W_OK)
    if not writable:
        return Finding("bad", "disk", f"{Path.cwd()} is not writable; give runs another place with --out")
    return Finding("ok" if free > 5 else "note", "disk", f"{free:.0f} GiB free in {Path.cwd()}")


def _cache() -> Finding:
    try:
        return Finding("ok", "cache", str(cache_dir()))
    except UserError as error:
        return Finding("bad", "cache", str(error))


@click.command(epilog="Example: flowrace doctor")
@JSON_OPTION
def doctor(as_json: bool) -> None:
    """Versions, device, disk and weights: what this installation can do, and what is missing."""
    from harness.cli.doctor import examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for finding in findings:
            table.add_row({"ok": "ok", "note": "-", "bad": "!!"}[finding.state], finding.what, finding.text)
        Console().print(table)
    if any(finding.state == "bad" for finding in findings):
        raise click.exceptions.Exit(1)
