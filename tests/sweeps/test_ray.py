"""The Ray launcher on a cluster of two nodes on this machine; nodes are removed, processes killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.records.record import Record
from sweeps.launch.base import Finished, Resources, Started
from sweeps.launch.handoff import Handoff
from sweeps.launch.ray import PRIORITY, RayLauncher, in_bytes
from tests.conftest import ROOT
from tests.sweeps.engines import (
    STUDY,
    TRAINS,
    assert_race_has_the_looks_of_a_local_one,
    assert_same_bits,
    at_work,
    drain,
    job,
    kill,
    logged,
    planned,
    starts,
    sweep,
    until,
)

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# As in a cluster that flowrace starts: at Ray's priority of 15, runs wait for every other test.
os.environ[PRIORITY] = "0"
# Not imported here: both test processes would load it.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, so that every run is on one of two nodes, which tests may remove."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        found.nodes = [found.add_node(num_cpus=1, resources={f"node{k}": 1}) for k in range(2)]
        found.wait_for_nodes()
        yield found
    finally:
        found.shutdown()


@pytest.fixture(scope="module")
def node() -> Iterator[Any]:
    """A cluster of one node with two CPUs, which starts in half the time."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield found
    finally:
        found.shutdown()


@pytest.fixture
def handoff(tmp_path: Path) -> Handoff:
    (tmp_path / "launch").mkdir()
    return Handoff(tmp_path / "launch", {"ONCE": str(tmp_path / "once")})


@pytest.mark.slow
def test_jobs_run_in_order_and_a_killed_one_is_retried(node: Any, handoff: Handoff, tmp_path: Path) -> None:
    once = "import os, pathlib; once = pathlib.Path(os.environ['ONCE'])\n"
    code = f"{once}if not once.exists(): once.touch(); os.kill(os.getpid(), 9)\nprint('done')"
    codes = ["print('hello')", "import sys; sys.exit('broken')", "print('three')", code]
    with RayLauncher(handoff, Resources(), address=node.address, at_a_time=1) as engine:
        for name, text in zip("abcd", codes, strict=True):
            engine.submit(job(tmp_path, name, text))
        events = drain(engine)
    assert [event.name for event in events if isinstance(event, Started)] == list("abcd")
    ends = {event.name: event.code for event in events if isinstance(event, Finished)}
    assert ends == {"a": 0, "b": 1, "c": 0, "d": 0}
    assert [(tmp_path / f"{name}.log").read_text() for name in "abcd"] == [
        "hello\n", "broken\n", "three\n", "done\n",
    ]  # fmt: skip


@pytest.mark.slow
def test_cancel_lets_running_jobs_write_a_checkpoint(node: Any, handoff: Handoff, tmp_path: Path) -> None:
    with RayLauncher(handoff, Resources(), address=node.address) as engine:
        # Two jobs start, the third waits.
        for name in "abc":
            engine.submit(job(tmp_path, name, TRAINS))
        until(lambda: logged(tmp_path, "a", "here") and logged(tmp_path, "b", "here"), engine)
        engine.cancel()
        events = drain(engine)
    assert {event for event in events if isinstance(event, Finished)} == {
        Finished(name, 130) for name in "abc"
    }
    assert [(tmp_path / f"{name}.log").read_text() for name in "ab"] == ["here\ncheckpoint\n"] * 2
    assert not (tmp_path / "c.log").exists() and engine.stopped_by == signal.SIGINT


@pytest.mark.slow
def test_run_larger_than_every_node_is_rejected(cluster: Any, handoff: Handoff) -> None:
    with (
        pytest.raises(UserError, match=r"no node of the Ray cluster has 1 CPUs and 4 GPUs for a run"),
        RayLauncher(handoff, Resources(gpus=4), address=cluster.address),
    ):
        pass


def test_unreachable_cluster_is_rejected(handoff: Handoff) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(UserError, match=f"no Ray cluster at {address}"),
        RayLauncher(handoff, Resources(), address=address),
    ):
        pass


def test_poll_waits_when_only_other_coordinators_train(handoff: Handoff, monkeypatch: Any) -> None:
    """The runner polls until their runs have ended, and must leave them the core."""
    waits: list[float] = []
    monkeypatch.setattr("sweeps.launch.ray.time.sleep", waits.append)
    assert RayLauncher(handoff, Resources()).poll(0.3) == [] and waits == [0.3]


def test_memory_size_is_converted_to_bytes() -> None:
    assert [in_bytes(size) for size in (None, "16G", "512M", "3", "1t")] == [
        None,
        2**34,
        2**29,
        3 * 2**20,
        2**40,
    ]
    with pytest.raises(UserError, match="--mem lots is not a size"):
        in_bytes("lots")


OWN = """if True:
    import json, sys
    from pathlib import Path
    from sweeps.launch.base import Resources
    from sweeps.launch.handoff import Handoff
    from sweeps.launch.ray import RayLauncher
    from tests.sweeps.engines import drain, job, listening

    folder = Path(sys.argv[1])
    with RayLauncher(Handoff(folder / "launch"), Resources()) as engine:
        engine.submit(job(folder, "a", "import os; print(os.nice(0))"))
        last = drain(engine)[-1]
        print(json.dumps(listening()), last, sep="\\n")
"""


@pytest.mark.slow
def test_local_cluster_listens_on_the_loopback_only_and_keeps_the_priority(
    handoff: Handoff, tmp_path: Path
) -> None:
    """The test uses a separate process, because Ray chooses its interface when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != PRIORITY}
    done = subprocess.run(
        [sys.executable, "-c", OWN, tmp_path], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    addresses, last = done.stdout.splitlines()
    assert last == "Finished(name='a', code=0)", done.stderr
    assert (tmp_path / "a.log").read_text() == f"{os.nice(0)}\n"
    found = json.loads(addresses)
    # 127.0.0.1, also when mapped into IPv6.
    assert found and all(address.endswith("0100007F") for address in found), found


@pytest.mark.slow
def test_race_has_the_looks_of_a_local_one(node: Any, tmp_path: Path) -> None:
    flags = ("--launcher", "ray", "--threads", "1", "--address", node.address)
    assert_race_has_the_looks_of_a_local_one(tmp_path, *flags)


@pytest.mark.slow
def test_disturbed_study_has_the_bits_of_an_undisturbed_one(cluster: Any, tmp_path: Path) -> None:
    """One run is killed, the node of another is removed, and the coordinator is killed."""
    study, calm, wild = tmp_path / "study.toml", tmp_path / "calm", tmp_path / "wild"
    study.write_text(STUDY)
    assert sweep(study, calm, "--slots", "2", "--threads", "1").wait(600) == 0
    flags = ("--launcher", "ray", "--threads", "1", "--address", cluster.address)
    coordinator = sweep(study, wild, *flags)
    until(lambda: (wild / "plan.json").exists())
    a, b, c, _ = planned(wild)
    until(lambda: at_work(wild, a, 8))
    kill(at_work(wild, a, 8))
    until(lambda: at_work(wild, b, 8))
    removed = _node_of(cluster, at_work(wild, b, 8))
    cluster.remove_node(removed, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    until(lambda: at_work(wild, c, 8))
    kill(coordinator.pid)
    coordinator.wait()
    coordinator = sweep(study, wild, *flags)
    assert coordinator.wait(900) == 0, Path(f"{wild}.output").read_text()
    assert_same_bits(wild, calm)
    assert all(starts(wild, run) > 1 for run in (a, b))


@pytest.mark.slow
def test_ctrl_c_writes_checkpoints(cluster: Any, tmp_path: Path) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text(STUDY)
    coordinator = sweep(study, out, "--launcher", "ray", "--threads", "1", "--address", cluster.address)
    until(lambda: (out / "plan.json").exists())
    first = planned(out)[0]
    until(lambda: at_work(out, first, 8))
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(300) == 130, Path(f"{out}.output").read_text()
    record = Record(out / first)
    saved = sorted(file.name for file in (record.path / "checkpoints").iterdir())[-1]
    assert record.status == "stopped" and saved == f"step-{record.last_step:08d}.safetensors"


def _node_of(cluster: Any, pid: int | None) -> Any:
    """Return the node whose raylet is an ancestor of a process."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    while pid not in raylets:
        assert pid is not None and pid > 1
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return raylets[pid]
