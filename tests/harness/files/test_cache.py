"""The location of the cache folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.files.cache import cache_dir


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FLOWRACE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_cache_dir_prefers_flowrace_cache_to_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir("a", "b") == tmp_path / "xdg" / "flowrace" / "a" / "b"
    monkeypatch.setenv("FLOWRACE_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "home" / "mine"
    assert cache_dir().is_dir()


def test_cache_dir_is_in_home_without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_dir() == tmp_path / "home" / ".cache" / "flowrace"
    # The XDG specification requires relative paths to be ignored.
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / "home" / ".cache" / "flowrace"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir("x") == tmp_path / "home" / "Library" / "Caches" / "flowrace" / "x"


def test_cache_dir_that_cannot_be_written_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write the cache \S*file/cache\S*: .*FLOWRACE_CACHE"):
        cache_dir("encoders")
