"""Weights of published encoders.

They are loaded like those of metric networks (metrics.files), with errors that name `method.encoder`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.encoders.base import EncoderChoice
from harness.errors import UserError
from metrics.files.hub import weights_file
from metrics.value import MetricError


def on_disk(choice: EncoderChoice, repository: str, file: str) -> Path:
    """Return the file of `method.encoder.weights`, else the hub's copy.

    It is downloaded only if `download` is set. Raises `UserError` for a file that does not exist, and
    `MetricError` for weights that are not on this machine.
    """
    if choice.weights and not Path(choice.weights).expanduser().is_file():
        raise UserError(f"method.encoder.weights = {choice.weights}: no such file")
    return weights_file(
        f"encoder '{choice.name}'",
        choice.weights,
        repository,
        file,
        download=choice.download,
        setting="method.encoder.weights",
        consent="set method.encoder.download=true",
    )


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a `MetricError` of the loaders of metric networks into a `UserError`."""
    try:
        yield
    except MetricError as error:
        raise UserError(str(error)) from error
