"""Weights of published encoders: a file on disk, or the hub's copy; safetensors only, nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.encoders.base import EncoderChoice
from harness.errors import UserError


def on_disk(choice: EncoderChoice, repository: str | None, name: str, *, without: str) -> Path:
    """The file of `weights`, else the hub's copy, which is only fetched when `download` is set.

    Raises `UserError` that says which file to place where; `without` is the sentence for a model that the hub does not have.
    """
    if choice.weights:
        path = Path(choice.weights).expanduser()
        if not path.is_file():
            raise UserError(f"method.encoder.weights = {choice.weights}: no such file")
        return path
    if not repository:
        raise UserError(f"encoder '{choice.name}' {without}")
    try:
        return Path(hf_hub_download(repository, name, local_files_only=not choice.download))
    except OSError as error:
        asked = f" ({str(error).splitlines()[0]})" if choice.download else ""
        raise UserError(
            f"encoder '{choice.name}': its weights are not on this machine{asked}; put https://huggingface.co/{repository}"
            f"/resolve/main/{name} somewhere and name the file in method.encoder.weights"
            + ("" if choice.download else ", or set method.encoder.download=true")
        ) from error


def read(file: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin with `prefix`; raises `UserError` for another kind of file."""
    try:
        with safe_open(file, "pt") as content:
            return {n: content.get_tensor(n) for n in content.keys() if n.startswith(prefix)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is not a safetensors file ({error}); nothing else is read here, convert it once with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
        ) from error


@contextmanager
def fitting(file: Path) -> Iterator[None]:
    """Turns what torch says of weights that do not fit into our sentence."""
    try:
        yield
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{file} holds weights of another network: {reason}") from error
