"""Programs of this user that listen on addresses which other machines can reach, from Linux's /proc."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from harness.cli.finding import Finding

PROC = Path("/proc")
PROGRAMS = re.compile(r"\b(mlflow|raylet|gcs_server|ray|tensorboard|flowrace)\b")
"""Programs that flowrace or its users start, in a command line."""
LISTENS = "0A"
"""State of a listening socket in /proc/net/tcp."""


class Listener(NamedTuple):
    """A socket that listens, and the program that has it."""

    program: str
    process: int
    address: str


def listening(proc: Path = PROC) -> list[Finding]:
    """Return a finding for each of the programs that listens beyond this machine; or one that none does."""
    if not (proc / "net" / "tcp").exists():
        text = "listening addresses cannot be read on this system; check that `mlflow ui` uses 127.0.0.1"
        return [Finding("note", "listening", text)]
    found = sorted(set(listeners(proc)))
    if not found:
        return [Finding("ok", "listening", "no MLflow, Ray or TensorBoard of this user is open to a network")]
    return [
        Finding(
            "open",
            "listening",
            f"{one.program} (process {one.process}) listens on {one.address}, which other machines can "
            f"reach; stop it with kill {one.process}, and start it for this machine: --host 127.0.0.1",
        )
        for one in found
    ]


def listeners(proc: Path = PROC) -> Iterator[Listener]:
    """Yield the sockets of the programs that listen on an address other than loopback."""
    addresses = dict(_sockets(proc))
    for process, program in _programs(proc):
        with suppress(OSError):
            for descriptor in (proc / str(process) / "fd").iterdir():
                if (address := addresses.get(_target(descriptor))) is not None:
                    yield Listener(program, process, address)


def _programs(proc: Path) -> Iterator[tuple[int, str]]:
    """Yield the processes whose command line names one of the programs."""
    for folder in proc.iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if found := PROGRAMS.search(line):
                    yield int(folder.name), found[1]


def _target(link: Path) -> str:
    """Return the target of a link; empty for one that has gone."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _sockets(proc: Path) -> Iterator[tuple[str, str]]:
    """Yield the sockets that listen beyond loopback: their name as a link of a process, and the address."""
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / name).read_text().splitlines()[1:]:
                fields = line.split()
                host, _, port = fields[1].partition(":")
                if fields[3] == LISTENS and not _is_loopback(host):
                    yield f"socket:[{fields[9]}]", f"{_address(host)} port {int(port, 16)}"


def _address(hexadecimal: str) -> str:
    """Return an address that the kernel wrote as words of the machine's byte order."""
    words = [bytes.fromhex(hexadecimal[k : k + 8])[::-1] for k in range(0, len(hexadecimal), 8)]
    return str(ip_address(b"".join(words)))


def _is_loopback(hexadecimal: str) -> bool:
    address = ip_address(_address(hexadecimal))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
