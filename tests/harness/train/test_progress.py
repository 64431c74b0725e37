"""How a run shows itself in a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from harness.train.progress import Live


def test_a_note_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in brackets is no markup, whether or not it would be one."""
    console = Console(force_terminal=True, width=80, record=True, legacy_windows=False)
    monkeypatch.setattr("harness.files.progress.Console", lambda stderr: console)
    live, notes = Live(), ["[/data/x] is gone", "in [red]:[/red] 5 \\[x]"]
    live.begin(0, 10)
    for note in notes:
        live.note(note)
    live.close()
    shown = console.export_text()
    assert all(note in shown for note in notes)
