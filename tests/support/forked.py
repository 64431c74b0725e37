"""Work in a forked process, which has the modules and caches of this one: for tests that kill it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from tests.support.waiting import wait_until


def in_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run `work` in a forked process, killed after `kill_after` seconds; return 0, or minus the signal."""
    child = fork(work)
    if kill_after is not None:
        signal.signal(signal.SIGALRM, lambda *_: _kill(child))
        signal.setitimer(signal.ITIMER_REAL, kill_after)
    code = exit_code(child)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return code


def _kill(child: int) -> None:
    # It may have ended an instant ago.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def command_in_child(words: Sequence[str], output: Path) -> int:
    """Start a flowrace command as the leader of a new process group, and return its process id."""
    return fork_printing(partial(flowrace, words), output)


def flowrace(words: Sequence[str]) -> None:
    """Run a flowrace command in this process, which it ends."""
    from harness.cli.main import main

    sys.argv = ["flowrace", *words]
    main()


def fork_printing(work: Callable[[], object], output: Path) -> int:
    """Return the id of a forked process that leads a new process group and prints to a file."""

    def printing() -> None:
        os.setsid()
        with open(output, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()

    return fork(partial(with_own_output, printing))


def with_own_output(work: Callable[[], object]) -> None:
    """Work with the output of this process, not with that of pytest, which keeps it."""
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    work()


def fork(work: Callable[[], object]) -> int:
    """Return the id of a forked process that does `work`; it exits with 0, 1, or the code of `sys.exit`."""
    child = os.fork()
    if child == 0:
        work_and_exit(work)
    return child


def work_and_exit(work: Callable[[], object]) -> NoReturn:
    """Do the work of a forked process and end it."""
    code = 1
    try:
        _use_one_thread()
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _use_one_thread() -> None:
    """Keep torch to this thread, whatever a spec asks for.

    A forked process has the pool of OpenMP of its parent, but not the threads in it. If the parent has used
    two, an operation on two would wait for the other one forever.
    """
    if "torch" not in sys.modules:
        return
    import torch

    from harness.runtime import environment

    torch.set_num_threads(1)
    environment.cores = lambda: 1


def in_world(size: int, work: Callable[[], None]) -> None:
    """Run `work` in forked processes with the variables that torchrun sets; fail if one of them fails.

    It is run once more if the allocator aborted a process: a fork of a process with threads may have a heap
    that one of them was changing.
    """
    codes = exit_codes(size, work)
    if -signal.SIGABRT in codes:
        codes = exit_codes(size, work)
    assert codes == [0] * size


def exit_codes(size: int, work: Callable[[], None]) -> list[int]:
    """Run `work` in forked processes; return their exit codes, negative for signals.

    If one fails, the others, which would wait for it, are killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def of_rank(rank: int) -> None:
        os.environ.update(world, RANK=str(rank), LOCAL_RANK=str(rank))
        work()

    running, codes = {fork(partial(of_rank, rank)) for rank in range(size)}, []
    while running:
        wait_until(lambda: any(map(has_ended, running)), seconds=1800)
        for child in [child for child in running if has_ended(child)]:
            running.remove(child)
            codes.append(exit_code(child))
            for other in running if codes[-1] else ():
                os.kill(other, signal.SIGKILL)
    return codes


def has_ended(child: int) -> bool:
    """Return whether a forked process has ended; its exit code remains to be read."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def exit_code(child: int) -> int:
    """Wait for a forked process and return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
