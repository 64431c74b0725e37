"""What a process is prepared to be."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from harness.environment import prepare
if sys.argv[1] == "prepared":
    prepare(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    torch.ones(12_000_000)  # 48 MB: glibc maps what is larger than 32 MB, and unmaps it when it is freed
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_memory_that_was_freed_is_taken_again_without_a_page_fault() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("prepared") < 100
    assert faults("as it comes") > 10  # huge pages may make it few
