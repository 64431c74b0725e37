"""What a run ran on: written into its record at every start. Importing this imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
PACKAGES = ("flowrace", "torch", "numpy", "timm", "torch-fidelity", "mlflow", "safetensors", "pydantic")


def describe(device: torch.device, devices: int) -> dict[str, Any]:
    """Versions, device and threads of this process, as JSON; `started` is in milliseconds since 1970."""
    import torch

    return {
        "started": int(time.time() * 1000),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "code": code_version(),
        "device": device.type,
        "device_name": device_name(device),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def prepare(threads: int) -> None:
    """Fix what bits depend on: CPU threads (0: all cores) and deterministic kernels; and keep memory, on
    which none does."""
    import torch

    keep_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads or cores())
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # By default torch lets convolutions take TF32, and matrix products not.
    torch.backends.cudnn.allow_tf32 = False


def keep_memory() -> None:
    """Tell glibc's allocator to keep what is freed: every step needs it again, and memory that was given back
    is cleared by the kernel page by page (benchmarks.before_after has what that takes)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def code_version() -> str | None:
    """The commit of the checkout that this package runs from, `+` for uncommitted changes; None outside a
    checkout."""
    folder = Path(__file__).parents[1]
    if not (folder.parent / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.TimeoutExpired):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", folder, *words], capture_output=True, text=True, timeout=5
    ).stdout.strip()
