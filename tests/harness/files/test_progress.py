"""Progress bars on standard error."""

from __future__ import annotations

import pytest
from rich.console import Console

from harness.files.progress import format_duration, progress_bar, tracked


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")]
)
def test_format_duration(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


def test_tracked_prints_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(tracked([1, 2, 3], "items")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_progress_bar_shows_its_description_verbatim_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=80, record=True, legacy_windows=False)
    monkeypatch.setattr("harness.files.progress.Console", lambda stderr: console)
    with progress_bar(4, "[red]a/b", unit="samples") as advance:
        advance(3)
    text = console.export_text()
    assert "[red]a/b" in text and "3/4" in text
