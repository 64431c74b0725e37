"""Plug-ins written to version 0.1.0 import from the paths of that version."""

from __future__ import annotations

import importlib
import sys

import pytest

from harness.config.moved_modules import MOVED, RENAMED, install


@pytest.mark.parametrize("old", MOVED)
def test_old_path_gives_the_objects_of_the_new_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    install()
    old_names, today = vars(importlib.import_module(old)), vars(importlib.import_module(MOVED[old]))
    shared = [name for name in today if not name.startswith("__")]
    assert all(old_names[name] is today[name] for name in shared)
    for was, now in RENAMED.get(MOVED[old], {}).items():
        assert old_names[was] is today[now]


def test_installing_twice_adds_one_finder() -> None:
    install()
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before
