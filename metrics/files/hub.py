"""Weights of published networks, from a given file or from the Hugging Face hub's local cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from metrics.value import MetricError


def weights_file(
    what: str,
    given: str | Path | None,
    repository: str,
    file: str,
    *,
    download: bool,
    setting: str = "weights",
    consent: str = "ask for the download",
) -> Path:
    """Return the given file, else the hub's copy, which is downloaded only if `download` is set.

    Errors mention `what` as the network, `setting` as the argument that takes a file, and `consent` as the
    way to allow a download. An empty `repository` means that the hub does not have the weights. Raises
    `MetricError` for weights that are not on this machine.
    """
    if given:
        return Path(given).expanduser()
    if not repository:
        raise MetricError(f"{what} has no weights on the hub; set {setting} to a safetensors file")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, local_files_only=not download))
    except OSError as error:
        reason = f" ({str(error).strip().partition(chr(10))[0]})" if download else ""
        raise MetricError(
            f"{what}: its weights are not on this machine{reason}; download "
            f"https://huggingface.co/{repository}/resolve/main/{file} and set {setting} to that file"
            + ("" if download else f", or {consent}")
        ) from error


def fill_part(
    network: nn.Module, tensors: Mapping[str, Tensor], file: Path, what: str, *, surplus: tuple[str, ...] = ()
) -> None:
    """Load tensors into a network; unexpected tensors are allowed if their names begin with one of `surplus`.

    Raises `MetricError` for weights of another network. The error names the first tensor that is missing,
    unexpected or of the wrong shape.
    """
    try:
        result = network.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        last = str(error).strip().rpartition("\n")[2].strip()
        raise MetricError(f"{file} does not hold the weights of {what}: {last}") from error
    left = [name for name in result.unexpected_keys if not name.startswith(surplus)]
    for verb, names in (("lacks", result.missing_keys), ("also holds", left)):
        if names:
            raise MetricError(
                f"{file} does not hold the weights of {what}: it {verb} {names[0]} and {len(names) - 1} more"
            )
