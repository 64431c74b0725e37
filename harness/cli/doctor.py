"""`flowrace doctor`: a check of versions, devices, disk and cache that names the fix of each problem."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import click
from packaging.requirements import Requirement
from packaging.version import Version

from harness import __version__
from harness.cli.finding import Finding, print_findings
from harness.config.options import JSON_OPTION, examples
from harness.errors import UserError
from harness.files.cache import cache_dir
from harness.runtime.environment import code_version, cores, device_name, package_version

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
"""Versions that CI passed with. The file is in a checkout, not in a wheel."""


def examine() -> list[Finding]:
    """Return every finding: versions first, then devices and disk."""
    code = code_version()
    return [
        Finding("ok", "flowrace", __version__ + (f", commit {code}" if code else "")),
        Finding("ok", "python", platform.python_version()),
        *_packages(),
        _constraints(CONSTRAINTS),
        *_devices(),
        _disk(),
        _cache(),
    ]


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


def _constraints(file: Path) -> Finding:
    """Return the packages whose version differs from constraints.txt; a note, because other versions work."""
    if not file.exists():
        text = "no constraints.txt, which lists the versions that CI passed with; a checkout has it"
        return Finding("note", "constraints", text)
    pinned = [
        Requirement(line) for line in file.read_text().splitlines() if line and not line.startswith("#")
    ]
    versions = {str(pin): package_version(pin.name) for pin in pinned}
    differ = [f"{pin} (here {have})" for pin, have in versions.items() if have and not _equal(pin, have)]
    absent = sum(have is None for have in versions.values())
    if not differ and not absent:
        return Finding("ok", "constraints", f"all {len(pinned)} packages as in constraints.txt")
    counts = f"of {len(pinned)} packages in constraints.txt, {len(differ)} differ, {absent} are not installed"
    return Finding("note", "constraints", f"{counts}. {', '.join(differ)}".rstrip(". "))


def _equal(pin: str, have: str) -> bool:
    """Compare a version with a pinned one; a build suffix such as +cpu does not count."""
    return Version(have).public == Version(pin.partition("==")[2]).public


def _devices() -> Iterator[Finding]:
    """Yield the CPU and every GPU. Torch is imported only if CUDA's driver is installed: it takes seconds."""
    yield Finding("ok", "cpu", f"{cores()} cores")
    if not _has_cuda_driver():
        yield Finding("note", "cuda", "no GPU: runs use the CPU")
        return
    import torch

    if not torch.cuda.is_available():
        text = "CUDA's driver is installed, but torch finds no usable GPU: runs use the CPU"
        yield Finding("note", "cuda", text)
        return
    for number in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", number)
        memory = torch.cuda.get_device_properties(gpu).total_memory / 2**30
        yield Finding("ok", str(gpu), f"{device_name(gpu)}, {memory:.0f} GiB")


def _has_cuda_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    writable = os.access(Path.cwd(), os.W_OK)
    if not writable:
        return Finding("bad", "disk", f"{Path.cwd()} is not writable; choose another folder with --out")
    return Finding("ok" if free > 5 else "note", "disk", f"{free:.0f} GiB free in {Path.cwd()}")


def _cache() -> Finding:
    try:
        return Finding("ok", "cache", str(cache_dir()))
    except UserError as error:
        return Finding("bad", "cache", str(error))


@click.command(epilog=examples("flowrace doctor", "flowrace doctor --security", "flowrace doctor --json"))
@click.option(
    "--security",
    is_flag=True,
    help="Check instead what is open to others: files, addresses, tokens, and code of others.",
)
@JSON_OPTION
def doctor(security: bool, as_json: bool) -> None:
    """Check versions, devices, disk and cache, and print how to fix each problem.

    With --security, check the cache, runs below the working directory, tracking URI, listening addresses,
    plug-ins, formats of media, tokens and umask of this user. Each line is ok or open, with what to type.
    Passwords and tokens are not printed.

    Exit code 1 if there is a problem, or something is open.
    """
    if security:
        from harness.cli.security import examine_security

        return print_findings(examine_security(Path.cwd()), as_json)
    print_findings(examine(), as_json)
