"""Folders of latents, made by the command, for the tests."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from harness.cli.main import cli


def encode(source: object, codec: str, out: Path, *options: str) -> dict:
    words = ["data", "encode", str(source), "--codec", codec, "--out", str(out), "--json", *options]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    return json.loads(result.output)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
