"""Faults of the machine at the places where files are replaced and lines are appended."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

# Any: modules, files and paths.
from typing import Any

import pytest

FAULTS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
Break = Callable[[pytest.MonkeyPatch, OSError], None]


def in_file(ending: str, calls: int = 0) -> Break:
    """Fail when a file of this name shall replace the old one, after a number of times."""

    def start(patch: pytest.MonkeyPatch, error: OSError) -> None:
        replace, left = os.replace, [calls]

        def failing(source: Any, target: Any) -> None:
            if str(target).endswith(ending):
                left[0] -= 1
                if left[0] < 0:
                    raise error
            replace(source, target)

        patch.setattr(os, "replace", failing)

    return start


def in_line(module: Any, after: int) -> Break:
    """Fail in an append after a number of them; a part of the line is in the file, as on a full disk."""

    def start(patch: pytest.MonkeyPatch, error: OSError) -> None:
        write, left = module.write_fully, [after]

        def failing(file: Any, content: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                file.write(content[: len(content) // 2])
                raise error
            write(file, content)

        patch.setattr(module, "write_fully", failing)

    return start
