"""The text of constraints.txt: the exact versions of flowrace's dependencies in this environment, extras
included.

.venv/bin/python scripts/lock.py > constraints.txt      # or: make lock
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
HEADER = (
    "# The versions that CI passed with. Made by `make lock`; used with LOCKED=1. "
    "`flowrace doctor` compares.\n"
)


def wanted() -> list[Requirement]:
    """Return the requirements of pyproject.toml, including those of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(text) for group in (project["dependencies"], *extras) for text in group]


def installed(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return name -> version of the requirements and, recursively, of their requirements on this platform.

    Packages that are not installed are left out: those of other platforms and of optional extras.
    """
    versions: dict[str, str] = {}
    visited: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in visited:
            continue
        visited.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        # A build suffix (2.11.0+cpu) exists in some package indexes only.
        versions[name] = Version(package.version).public
        for text in package.requires or ():
            further = Requirement(text)
            if further.marker is None or any(
                further.marker.evaluate({"extra": extra}) for extra in (*extras, "")
            ):
                waiting.append(further)
    return versions


if __name__ == "__main__":
    versions = installed(wanted())
    print(HEADER + "\n".join(f"{name}=={versions[name]}" for name in sorted(versions)))
