"""Weights of published networks: a file that is named, or the Hugging Face hub's copy on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from metrics.value import MetricError


def weights_file(name: str, given: str | Path | None, repository: str, file: str, *, download: bool) -> Path:
    """The file that was given, else the hub's copy, which is fetched only when `download` is set.

    Raises `MetricError` that says which file to place where; an empty `repository` is a network the hub does not have.
    """
    if given:
        return Path(given).expanduser()
    if not repository:
        raise MetricError(
            f"extractor '{name}' has no weights on the hub: name a safetensors file with weights"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, local_files_only=not download))
    except OSError as error:
        asked = f" ({str(error).strip().partition(chr(10))[0]})" if download else ""
        raise MetricError(
            f"extractor '{name}': its weights are not on this machine{asked}; download "
            f"https://huggingface.co/{repository}/resolve/main/{file} and name the file with weights"
            + ("" if download else ", or ask for the download")
        ) from error


def fill_part(
    network: nn.Module, tensors: Mapping[str, Tensor], file: Path, what: str, *, surplus: tuple[str, ...] = ()
) -> None:
    """Load tensors into a network; names that begin with one of `surplus` may lie beside them.

    Raises `MetricError` for weights of another network, naming the first tensor that is lacking, left over or misshapen.
    """
    try:
        result = network.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        last = str(error).strip().rpartition("\n")[2].strip()
        raise MetricError(f"{file} does not hold the weights of {what}: {last}") from error
    left = [name for name in result.unexpected_keys if not name.startswith(surplus)]
    for verb, names in (("it lacks", result.missing_keys), ("it also holds", left)):
        if names:
            raise MetricError(f"{file} does not hold the weights of {what}: {verb} {names[0]}")
