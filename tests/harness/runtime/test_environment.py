"""The preparation of a process: allocator, precision, device."""

from __future__ import annotations

import inspect
import platform
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from harness.errors import UserError
from harness.runtime import distributed
from harness.runtime.distributed import World, join, pick_device
from harness.runtime.environment import describe, prepare
from harness.runtime.transfer import sent

FAULTS = """
import resource, sys, torch
from harness.runtime.environment import prepare
if sys.argv[1] == "prepared":
    prepare(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
taken = []
for _ in range(8):
    before = faults()
    # Beyond 32 MB glibc maps memory, and unmaps it when it is freed; this is 48 MB.
    torch.ones(12_000_000)
    taken.append(faults() - before)
print(min(taken))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_freed_memory_is_reused_without_page_faults() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("prepared") < 100
    # Huge pages can make the number small.
    assert faults("unprepared") > 10


def test_prepare_disables_tf32_and_pick_device_makes_the_gpu_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The calls to torch are recorded, so that no GPU is needed."""
    # As in NVIDIA's containers.
    torch.set_float32_matmul_precision("high")
    prepare(torch.get_num_threads())
    assert describe(torch.device("cpu"), 1)["float32_products"] == "highest"
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    current: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda:1") == torch.device("cuda:1") == current[0]
    assert pick_device("cpu") == torch.device("cpu") and len(current) == 1


def test_processes_of_one_machine_cannot_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with (
        pytest.raises(
            UserError, match=r"'cuda:1' is one GPU, but 2 processes .* set runtime\.device to cuda"
        ),
        join("cuda:1"),
    ):
        pass


def test_processes_on_gpus_join_by_nccl_with_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls to torch are recorded. With a device, a rank that cannot connect fails at the start."""
    calls: list[tuple[str, torch.device | None]] = []
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, *, timeout, device_id: calls.append((backend, device_id))
    )
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    for device, call in {"cuda": ("nccl", torch.device("cuda:1")), "cpu": ("gloo", None)}.items():
        with join(device) as world:
            assert world.size == 2 and world.rank == 1
        assert calls.pop() == call


@pytest.mark.parametrize("name", ["broadcast_buffers", "forward_sync_buffers"])
def test_replicated_pass_does_not_wait_for_the_buffers_of_rank_0(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Under the name of the option before torch 2.13 and since; the installed torch has one of them."""
    assert {"broadcast_buffers", "forward_sync_buffers"} & inspect.signature(DDP.__init__).parameters.keys()
    found: list[dict[str, object]] = []

    class Before(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, broadcast_buffers: bool = True, **_: object) -> None:
            super().__init__()
            found.append({"broadcast_buffers": broadcast_buffers})

    class Since(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, forward_sync_buffers: bool = True, **_: object) -> None:
            super().__init__()
            found.append({"forward_sync_buffers": forward_sync_buffers})

    known = Before if name == "broadcast_buffers" else Since
    monkeypatch.setattr(distributed, "DistributedDataParallel", known)
    World(0, 2, torch.device("cpu")).wrap(torch.nn.Linear(2, 2), changing=False)
    assert found == [{name: False}]


def test_tensor_is_sent_to_a_gpu_from_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls are recorded, since both need a GPU."""
    calls: list[object] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (calls.append("pinned"), self)[1])
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *words, **more: (calls.append((words, more)), self)[1]
    )
    x, gpu = torch.ones(2), torch.device("cuda:0")
    assert torch.equal(sent(x, gpu), x) and calls == ["pinned", ((gpu,), {"non_blocking": True})]
    calls.clear()
    assert sent(x, torch.device("cpu")) is x and calls == [((torch.device("cpu"),), {})]
