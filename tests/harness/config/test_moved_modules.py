"""Import paths of version 0.1.0, which its plug-ins use."""

from __future__ import annotations

import importlib
import sys

import pytest

from harness.config.moved_modules import MOVED, RENAMED, install


@pytest.mark.parametrize("old", MOVED)
def test_old_path_has_the_objects_of_the_current_one(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    install()
    old_names, current = vars(importlib.import_module(old)), vars(importlib.import_module(MOVED[old]))
    shared = [name for name in current if not name.startswith("__")]
    assert all(old_names[name] is current[name] for name in shared)
    for old_name, name in RENAMED.get(MOVED[old], {}).items():
        assert old_names[old_name] is current[name]


def test_install_adds_one_finder_when_called_twice() -> None:
    install()
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before
