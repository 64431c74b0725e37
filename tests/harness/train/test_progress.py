"""The progress display of a run in a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from harness.train.progress import Live


def test_note_is_shown_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are not treated as markup, even where they would be valid markup."""
    console = Console(force_terminal=True, width=80, record=True, legacy_windows=False)
    monkeypatch.setattr("harness.files.progress.Console", lambda stderr: console)
    live, notes = Live(), ["[/data/x] is gone", "in [red]:[/red] 5 \\[x]"]
    live.begin(0, 10)
    for note in notes:
        live.note(note)
    live.close()
    shown = console.export_text()
    assert all(note in shown for note in notes)
