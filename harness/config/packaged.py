"""TOML files packaged with flowrace; the first line of each is a comment that summarises it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any


@dataclass(frozen=True)
class PackagedToml:
    """The TOML files in a folder of an installed package, by name without suffix."""

    package: str
    folder: str

    def names(self) -> list[str]:
        """Return the names of the files, sorted."""
        return sorted(
            file.name.removesuffix(".toml") for file in self._files().iterdir() if file.name.endswith(".toml")
        )

    def summary(self, name: str) -> str:
        """Return the text of the comment in the first line of a file."""
        return self._read(name).splitlines()[0].lstrip("# ")

    # Any: the values of a TOML file.
    def table(self, name: str) -> dict[str, Any]:
        """Return the parsed content of a file."""
        return tomllib.loads(self._read(name))

    def _read(self, name: str) -> str:
        return (self._files() / f"{name}.toml").read_text()

    def _files(self) -> Traversable:
        return resources.files(self.package) / self.folder
