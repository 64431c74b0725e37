"""The environment of a run, which its record holds for every start. Importing this does not import torch."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
PACKAGES = (
    "flowrace",
    "torch",
    "numpy",
    "timm",
    "torch-fidelity",
    "mlflow",
    "safetensors",
    "pydantic",
    "adam-atan2-pytorch",
)


def describe(device: torch.device, devices: int) -> dict[str, Any]:
    """Return versions, device and threads of this process as JSON; `started` is in ms since 1970."""
    import torch

    about: dict[str, Any] = {
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
        "float32_products": torch.get_float32_matmul_precision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }
    return about | ({"cuda": _cuda_libraries(device)} if device.type == "cuda" else {})


def prepare(threads: int) -> None:
    """Set everything that affects bitwise results, and the allocator, which does not.

    The former are CPU threads (0: all cores) and deterministic kernels.
    """
    import torch

    keep_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads or cores())
    # `use_deterministic_algorithms` also imports Inductor, which takes a second; compiled blocks call it.
    torch.set_deterministic_debug_mode("error")
    # With deterministic kernels torch fills every new tensor with NaN, which takes time.
    # No operation of a run reads memory that none has written. torch's stub lacks the setting.
    filling = torch.utils.deterministic
    filling.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = False
    # By default torch uses TF32 for convolutions, and for matrix products too in NVIDIA's containers, which
    # set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE.
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


def keep_memory() -> None:
    """Make glibc's allocator keep freed memory, which every step needs again.

    Memory that was returned to the kernel is cleared page by page; benchmarks.before_after measures the cost.
    """
    # Other C libraries have no such call.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """Return the model name of a GPU, or of this machine's CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# Any: JSON.
def _cuda_libraries(device: torch.device) -> dict[str, Any]:
    """Return the versions of the libraries on which the bits of a GPU depend, and its architecture."""
    import torch
    from torch.cuda import nccl

    of_nccl = nccl.version() if torch.distributed.is_nccl_available() else ()
    return {
        "runtime": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, of_nccl)),
        "capability": list(torch.cuda.get_device_capability(device)),
    }


def package_version(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def code_version() -> str | None:
    """Return the commit of the checkout that this package runs from; None outside a checkout.

    A `+` at the end marks uncommitted changes. Later calls return the answer of the first: the process keeps
    the code that it loaded.
    """
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
