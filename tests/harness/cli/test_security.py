"""`flowrace doctor --security`: each way in is made here, found, and closed by what the line says."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from harness.cli import security
from harness.cli.finding import Finding
from harness.cli.listening import listeners, listening
from harness.cli.security_files import cache_findings, run_findings, walked
from harness.config import registry
from harness.files.cache import cache_dir
from metrics.files.hashing import file_sha256
from tests.support.commands import flowrace

PASSWORD = "hunter2"


def states(findings: list[Finding]) -> list[str]:
    return [finding.state for finding in findings]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a new cache, below a folder that does not exist yet."""
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "a" / "cache"))
    return cache_dir()


def typed(finding: Finding) -> None:
    """Type the command at the end of a finding."""
    start = finding.text.index("chmod")
    subprocess.run(finding.text[start:], shell=True, check=True)


def test_cache_is_created_for_this_user_alone(cache: Path) -> None:
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert states(cache_findings(cache)) == ["ok", "ok"]


def test_missing_cache_is_not_created(tmp_path: Path) -> None:
    assert states(cache_findings(tmp_path / "cache")) == ["ok"] and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o777, 0o701])
def test_cache_that_others_may_use_is_open_until_the_command_is_typed(cache: Path, mode: int) -> None:
    cache.chmod(mode)
    finding = cache_findings(cache)[0]
    assert finding.state == "open" and ("write" in finding.text) == bool(mode & 0o022)
    typed(finding)
    assert cache_findings(cache)[0].state == "ok"


def test_file_of_the_cache_that_every_user_may_write_is_open(cache: Path) -> None:
    file = cache_dir("stores") / "a b.safetensors"
    file.touch()
    file.chmod(0o666)
    finding = cache_findings(cache)[0]
    assert finding.state == "open" and str(file) in finding.text
    typed(finding)
    assert cache_findings(cache)[0].state == "ok"


def test_links_of_and_in_the_cache_are_open(cache: Path, tmp_path: Path) -> None:
    (cache / "inner").symlink_to(cache / "stores")
    assert cache_findings(cache)[0].state == "ok"
    (cache / "outer").symlink_to(tmp_path)
    assert "outer lead out of the cache" in cache_findings(cache)[0].text
    (tmp_path / "link").symlink_to(cache)
    assert "is a link to" in cache_findings(tmp_path / "link")[0].text


def test_cache_of_another_user_is_open(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1)
    assert "belongs to user" in cache_findings(cache)[0].text


def test_torchscript_is_listed_with_its_checksum_and_weights_are_not(cache: Path) -> None:
    with zipfile.ZipFile(cache / "net.pt", "w") as archive:
        archive.writestr("net/code/__torch__/torch/nn/modules/activation.py", "class ReLU(Module):\n")
    torch.save({"a": torch.zeros(1)}, cache / "weights.pt")
    (cache / "text.pt").write_text("x")
    [found] = [one for one in cache_findings(cache) if one.what == "programs in cache"]
    assert found.state == "note" and "weights.pt" not in found.text
    assert found.text.endswith(f"net.pt?sha256={file_sha256(cache / 'net.pt')}")


def test_pipe_that_is_named_as_torchscript_is_not_opened(cache: Path) -> None:
    """Opening it would wait for someone who writes into it."""
    os.mkfifo(cache / "net.pt")
    assert states(cache_findings(cache)) == ["ok", "ok"]


def test_folder_that_cannot_be_read_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser can read every folder, so the test raises the error of the system."""
    closed, scandir = cache_dir("a b"), os.scandir

    def refusing(place: str) -> object:
        if str(place) == str(closed):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    for found in (cache_findings(cache), run_findings(cache)):
        assert states(found) == ["bad", "ok"]
        assert f"{closed} cannot be read" in found[0].text and found[0].text.endswith(f"u+rwx '{closed}'")


def test_run_that_every_user_may_write_is_open_until_the_command_is_typed(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "0123456789ab"
    run.mkdir(parents=True)
    (run / "spec.toml").touch()
    assert run_findings(tmp_path)[0].text.startswith("1 runs and studies")
    run.chmod(0o777)
    finding = run_findings(tmp_path)[0]
    assert finding.state == "open" and str(run) in finding.text
    typed(finding)
    assert run_findings(tmp_path)[0].state == "ok"


def test_large_folder_is_looked_at_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.cli.security_files.MOST_FILES", 3)
    for number in range(5):
        (tmp_path / str(number)).touch()
    assert not walked(tmp_path).complete and "the first 3 files" in run_findings(tmp_path)[0].text


@pytest.mark.parametrize(
    ("uri", "state"),
    [
        ("", "ok"),
        ("sqlite:////home/ann@lab/mlflow.db", "ok"),
        ("https://host:5000", "ok"),
        ("http://localhost:5000", "ok"),
        ("http://127.0.0.1:5000", "ok"),
        ("http://host:5000", "open"),
        (f"https://ann:{PASSWORD}@host", "open"),
        (f"https://ann:x@{PASSWORD}@host", "open"),
        (f"postgresql://ann:{PASSWORD}/x@host/db", "open"),
        (f"postgresql://host/db?user=ann&password={PASSWORD}", "open"),
        (f"https://ann:{PASSWORD}/x@host", "open"),
        (f"https://ann:x/{PASSWORD}@host", "open"),
        (f"https://host/x?token={PASSWORD}#y", "open"),
        (f"HTTPS://ann:{PASSWORD}@host", "open"),
        ("HTTP://host:5000", "open"),
        ("HTTP://LOCALHOST:5000", "ok"),
        ("http://[::1]:5000", "ok"),
        ("http://[::1:5000", "open"),
        (f"http://[{PASSWORD}", "open"),
        ("https://host:5000/lab@home", "ok"),
    ],
)
def test_tracking_uri_with_a_password_is_open_and_not_printed(uri: str, state: str) -> None:
    found = security.tracking({security.TRACKING: uri})
    assert found.state == state and PASSWORD not in found.text and "ann:" not in found.text


def fake_proc(root: Path, host: str, words: str, table: str = "tcp") -> Path:
    """Write what Linux shows of a process that listens on port 5000 of an address."""
    (root / "net").mkdir(parents=True)
    (root / "net" / "tcp").write_text("head\n")
    row = f"  0: {host}:1388 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 777 1\n"
    (root / "net" / table).write_text(f"head\n{row}")
    (root / "12" / "fd").mkdir(parents=True)
    (root / "12" / "cmdline").write_bytes(words.replace(" ", "\0").encode())
    (root / "12" / "fd" / "3").symlink_to("socket:[777]")
    return root


@pytest.mark.parametrize(
    ("table", "host", "address"),
    [
        ("tcp", "00000000", "0.0.0.0"),
        ("tcp", "0100000A", "10.0.0.1"),
        ("tcp6", "00000000000000000000000000000000", "::"),
        ("tcp", "0100007F", None),
        ("tcp6", "00000000000000000000000001000000", None),
        ("tcp6", "0000000000000000FFFF00000100007F", None),
    ],
)
def test_tracking_server_on_an_address_of_the_network_is_open(
    tmp_path: Path, table: str, host: str, address: str | None
) -> None:
    """The address is in the byte order of a little-endian machine."""
    proc = fake_proc(tmp_path, host, "python -m mlflow ui", table)
    assert [one.address for one in listeners(proc)] == ([f"{address} port 5000"] if address else [])
    [found] = listening(proc)
    assert found.state == ("open" if address else "ok")
    if address:
        assert "mlflow (process 12)" in found.text and "kill 12" in found.text


def test_programs_of_others_are_not_named(tmp_path: Path) -> None:
    assert list(listeners(fake_proc(tmp_path, "00000000", "sshd -D"))) == []


def test_socket_of_this_process_is_found_in_the_real_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("this system has no /proc/net/tcp")
    import re
    import socket

    monkeypatch.setattr("harness.cli.listening.PROGRAMS", re.compile("(py)"))
    for host, found in (("127.0.0.1", 0), ("0.0.0.0", 1)):
        with socket.create_server((host, 0)) as server:
            port = server.getsockname()[1]
            own = [one for one in listeners() if one.process == os.getpid()]
            assert sum(one.address == f"0.0.0.0 port {port}" for one in own) == found


def test_plug_ins_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "plugins", lambda _: {})
    assert states(list(security.plug_ins())) == ["ok"]
    point = EntryPoint("mine", "my_package.mine:Mine", "flowrace.methods")
    monkeypatch.setattr(registry, "plugins", lambda kind: {"mine": point} if kind == "method" else {})
    [found] = security.plug_ins()
    assert found.state == "note" and "method 'mine' runs code of the package my_package" in found.text


@pytest.mark.slow
def test_ffmpeg_that_opens_a_session_description_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av")
    assert security.media().state == "ok"
    # The restriction of formats is what refuses it.
    monkeypatch.setattr(
        "metrics.files.containers._OPTIONS", {"protocol_whitelist": "file,udp,rtp", "format_whitelist": "sdp"}
    )
    assert security.media().state == "open"


def test_token_of_the_hub_is_found_and_not_printed(tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert states(list(security.hub(home))) == ["ok", "ok"]
    assert states(list(security.hub({"HF_HOME": str(tmp_path), "HF_TOKEN": PASSWORD}))) == ["note", "note"]
    (tmp_path / "token").write_text(PASSWORD)
    (tmp_path / "token").chmod(0o644)
    finding, _ = security.hub(home)
    assert finding.state == "open" and PASSWORD not in finding.text
    typed(finding)
    assert next(security.hub(home)).state == "note"


def test_what_cannot_be_examined_is_a_note_and_the_rest_is_found(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is too long gives an error, also for root, whom no permission keeps out."""
    denied = str(tmp_path / ("x" * 300))
    token, downloads = security.hub({"HF_HOME": denied, "HF_HUB_OFFLINE": "1"})
    assert token.state == "note" and "not examined" in token.text and downloads.state == "ok"
    monkeypatch.setenv("FLOWRACE_CACHE", denied)
    found = {finding.what: finding for finding in security.examine_security(tmp_path)}
    assert found["cache"].state == "note" and "not examined" in found["cache"].text
    assert found["runs"].state == "ok"


@pytest.mark.parametrize(("mask", "state"), [(0o022, "ok"), (0o077, "ok"), (0o002, "open"), (0, "open")])
def test_umask_that_lets_others_write_is_open_and_kept(mask: int, state: str) -> None:
    before = os.umask(mask)
    try:
        assert security.umask().state == ("note" if mask == 0o002 else state)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


def test_command_prints_each_line_and_exits_with_1_if_something_is_open(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://ann:{PASSWORD}@host")
    result = flowrace("doctor", "--security", "--json")
    rows = json.loads(result.stdout)
    assert result.exit_code == 1 and PASSWORD not in result.stdout
    assert {row["state"] for row in rows} <= {"ok", "note", "open"}
    names = {"cache", "runs", "pickles", "tracking", "listening", "plug-ins", "media", "hub token", "umask"}
    assert names <= {row["what"] for row in rows}
    assert next(row for row in rows if row["what"] == "tracking")["state"] == "open"
    assert "tracking" in flowrace("doctor", "--security").stdout
