"""Names of strangers are shown in a terminal: their control characters are escapes, and never sent."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import click
import pytest
from rich.table import Table

from harness.cli import main as cli
from harness.errors import UserError
from harness.files.names import check_name
from harness.files.terminal import Console, shown, shown_streams

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\udcff"


class Screen(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def is_inert(text: str) -> bool:
    return not any(mark in text for mark in HOSTILE if not mark.isalnum() and ord(mark) not in range(32, 127))


def test_text_keeps_everything_but_control_characters() -> None:
    assert shown("a\tü b\n") == "a\tü b\n"
    assert shown(HOSTILE) == r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\udcff"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("screen", [Screen, io.StringIO])
def test_messages_show_escape_sequences_in_terminals_and_pipes(
    monkeypatch: pytest.MonkeyPatch, stream: str, screen: type[io.StringIO]
) -> None:
    written = screen()
    monkeypatch.setattr(sys, stream, written)
    with shown_streams():
        click.echo(HOSTILE, err=stream == "stderr", color=True)
        print(HOSTILE, file=getattr(sys, stream))
    assert written.getvalue() == f"{shown(HOSTILE)}\n" * 2
    assert getattr(sys, stream) is written


def test_tables_show_escape_sequences_and_keep_their_colours() -> None:
    screen = Screen()
    console = Console(file=screen, width=100, force_terminal=True, color_system="standard")
    table = Table(title="[red]colours[/red]")
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE, markup=False, highlight=False)
    text = screen.getvalue()
    assert text.count("owned") == 3 and "\x1b]" not in text and "\x1b[2J" not in text and "\x9b" not in text
    assert "\x1b[3;31mcolours" in text


def test_error_of_the_command_line_shows_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = Screen()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(sys, "argv", ["flowrace", "report", str(tmp_path / HOSTILE)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and is_inert(written.getvalue()) and "owned" in written.getvalue()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../../../../escaped/here", "is a path"),
        ("/tmp/absolute", "is a path"),
        ("..", "is a path"),
        ("a\\b", "is a path"),
        ("a\0b", "has control characters"),
        ("a\nb", "has control characters"),
        ("\x1b[2J", "has control characters"),
        ("é" * 101, "is longer than 200 bytes"),
        ("", "is empty"),
    ],
)
def test_name_that_is_no_single_component_is_refused(name: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault) as refused:
        check_name(name, "name")
    assert shown(str(refused.value)) == str(refused.value)


def test_usual_names_are_accepted() -> None:
    for name in ("digits", "my runs", "größe-2.1_b", "…", ".hidden"):
        assert check_name(name, "name") == name
