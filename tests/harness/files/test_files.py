"""Locks and atomic writes, with a second process as the other holder or the victim of a kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files.files import (
    held,
    holder,
    locked,
    read_tail,
    read_toml,
    replacing,
    take_lock,
    try_lock_file,
    write_atomic,
    writing,
)
from tests.conftest import ROOT

HEADER = "import sys; from pathlib import Path; from harness.files import files\npath = Path(sys.argv[1])\n"


@contextmanager
def process(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run code in a process until it prints a line, and end the process afterwards."""
    command = [sys.executable, "-c", HEADER + code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as child:
        assert child.stdout is not None and child.stdout.readline()
        yield child
        child.kill()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_replacing_leaves_the_old_file_until_its_end(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    with replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old" and temporary.parent == tmp_path
    assert file.read_text() == "new" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_changes_nothing_after_an_error(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    with pytest.raises(error), replacing(file) as temporary:
        temporary.write_text("half")
        raise error
    assert file.read_text() == "old" and names(tmp_path) == ["a"]


def test_replacing_keeps_the_old_file_when_the_process_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    code = (
        "with files.replacing(path) as temporary:\n"
        "    temporary.write_text('half')\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    with process(code, file) as child:
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert file.read_text() == "old"
    write_atomic(file, b"new")
    assert file.read_bytes() == b"new" and names(tmp_path) == ["a"]


def test_replacing_never_writes_through_a_link_of_its_temporary_name(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".a.txt.tmp").symlink_to(victim)
    write_atomic(tmp_path / "a.txt", b"new")
    assert victim.read_text() == "mine" and (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


def test_lock_that_is_a_link_is_refused_and_its_target_is_unchanged(tmp_path: Path) -> None:
    """A folder from a stranger may hold such a link."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("lock", "a.lock"):
        (tmp_path / name).symlink_to(victim)
    with pytest.raises(OSError, match="it is a link"):
        take_lock(tmp_path / "lock", "run")
    with pytest.raises(OSError, match="it is a link"), locked(tmp_path / "a"):
        pytest.fail("locked through a link")
    assert victim.read_text() == "mine"


def test_writing_names_the_place_and_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "a"
    with pytest.raises(UserError, match=f"cannot write {file}: No such file or directory"), writing(file):
        write_atomic(file, b"")


def test_take_lock_names_the_holder_in_another_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = "file = files.take_lock(path, 'it')\nprint('in', flush=True)\nsys.stdin.read()"
    with process(code, lock) as child:
        name = f"process {child.pid} on {socket.gethostname()}"
        assert holder(lock) == name
        with pytest.raises(UserError, match=f"the run is in use by {name}; wait for it or stop it first"):
            take_lock(lock, "the run")
        with open(lock) as file:
            assert not try_lock_file(file)
    assert holder(lock) is None
    take_lock(lock, "the run").close()


def test_held_lock_is_removed_at_the_end(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock, "the study"):
        assert holder(lock) == f"process {os.getpid()} on {socket.gethostname()}"
    assert holder(lock) is None and names(tmp_path) == []


def test_take_lock_ignores_a_lock_file_without_a_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("process 1 on elsewhere\n")
    assert holder(lock) is None
    with take_lock(lock, "the run"):
        assert str(os.getpid()) in lock.read_text()


def test_locked_file_is_locked_for_another_process(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    code = "lock = open(path)\nprint(files.try_lock_file(lock), flush=True)"
    with locked(file):
        command = [sys.executable, "-c", HEADER + code, str(tmp_path / "table.json.lock")]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_read_tail_returns_the_last_bytes(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"0123456789")
    assert read_tail(file, 4) == b"6789" and read_tail(file) == b"0123456789"
    assert read_tail(tmp_path / "missing") == b""


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a = [1,", "a.toml is not TOML"), (b"\xff", "a.toml is not TOML"), (None, "cannot read .*a.toml")],
)
def test_read_toml_rejects_broken_and_missing_files(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_read_toml_accepts_a_byte_order_mark_and_accents(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.toml").write_bytes('name = "très grand"\r\n'.encode(encoding))
    assert read_toml(tmp_path / "a.toml") == {"name": "très grand"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_read_toml_names_wide_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.toml").write_bytes('name = "x"\n'.encode(encoding))
    with pytest.raises(UserError, match=rf"text in {encoding[:6].upper()}; save it as UTF-8.*iconv"):
        read_toml(tmp_path / "a.toml")


def test_read_toml_names_the_byte_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes('name = "tr\xe8s"'.encode("latin-1"))
    with pytest.raises(UserError, match="byte 0xe8 at position 10 is not UTF-8"):
        read_toml(tmp_path / "a.toml")
