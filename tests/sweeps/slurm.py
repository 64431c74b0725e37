"""A private SLURM for the tests: munged, slurmctld and one slurmd on this machine, confined to one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
CONF = """ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait={kill_wait}
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10
"""


@contextmanager
def slurm(folder: Path, *, cpus: int = 2, kill_wait: int = 20) -> Iterator[None]:
    """Provide a cluster of one node to `sbatch` and the other commands inside the block (through SLURM_CONF).

    The test is skipped if SLURM is not installed or the user is not root.
    """
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=_path()) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"needs {', '.join(missing)} (apt-get install slurm-wlm munge)" if missing else "needs root"
        )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().split(".")[0]
    ports = [_free_port() for _ in range(2)]
    conf, key = folder / "slurm.conf", folder / "munge.key"
    conf.write_text(CONF.format(folder=folder, host=host, ports=ports, cpus=cpus, kill_wait=kill_wait))
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed")]
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        patch.setenv("PATH", _path())
        stack.enter_context(
            _daemon("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        )
        _until(lambda: (folder / "munge.socket").exists(), folder)
        stack.enter_context(_daemon("slurmctld", "-D"))
        stack.enter_context(_daemon("slurmd", "-D"))
        _until(lambda: "idle" in _output("sinfo", "--noheader", "--format=%T"), folder)
        try:
            yield
        finally:
            _output("scancel", "--user=root")
            _until(lambda: not _output("squeue", "--noheader"), folder)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


@contextmanager
def _daemon(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _until(condition: Callable[[], object], folder: Path, patience: float = 60.0) -> None:
    give_up = time.monotonic() + patience
    while not condition():
        logs = {log.name: log.read_text()[-2000:] for log in folder.glob("*.log")}
        assert time.monotonic() < give_up, logs
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
