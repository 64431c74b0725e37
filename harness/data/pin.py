"""Content in a spec, which makes the run id depend on what files hold and not on where they are.

The fingerprint of the data and the sha256 of an encoder's weights are filled in for files that exist.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.config import registry
from harness.config.encoder_fields import RUN, names_run
from harness.config.method_config import MethodConfig
from harness.config.spec import RunSpec
from harness.data.found import check_labels
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.files.stamps import stamp_of


def pinned(spec: RunSpec) -> RunSpec:
    """Return the spec with `data.fingerprint` and the `content` of its encoders filled in.

    Data need a root that exists, and encoders weights that exist. Raises `UserError` if the content of either
    differs from that in the spec.
    """
    return _with_encoders(_with_text(_with_data(spec)))


def _with_data(spec: RunSpec) -> RunSpec:
    if not spec.data.root or spec.data.fingerprint or not Path(spec.data.root).exists():
        return spec
    dataset = open_dataset(spec.data)
    check_labels(dataset)
    fields = {"fingerprint": dataset.fingerprint}
    return spec.model_copy(update={"data": spec.data.model_copy(update=fields)})


def _with_text(spec: RunSpec) -> RunSpec:
    """Return the spec with the content of the text encoder's weights, a file or a folder of files."""
    text = spec.text
    # A network of transformers may be named by its folder.
    named = text.weights or text.encoder.partition(":")[2]
    place = Path(named).expanduser()
    if not named or text.sha256 or not (place.exists() if text.weights else place.is_dir()):
        return spec
    from metrics.files.hashing import folder_sha256

    content = folder_sha256(place) if place.is_dir() else _sha256(place, tuple(stamp_of(place)))
    if text.content and text.content != content:
        raise UserError(
            f"{place} holds other weights than this spec was planned with: sha256 {content}, expected "
            f"{text.content}; set text.weights to the original"
        )
    return spec.model_copy(update={"text": text.model_copy(update={"content": content})})


def _with_encoders(spec: RunSpec) -> RunSpec:
    method = _method_with_encoders(spec.method)
    return spec if method is spec.method else spec.model_copy(update={"method": method})


def _method_with_encoders(method: MethodConfig, prefix: str = "") -> MethodConfig:
    """Return the settings of a method, and of the terms of a stack, with the content of their encoders."""
    fields = {name: _field(value, f"{prefix}{name}") for name, value in method}
    changed = {name: value for name, value in fields.items() if value is not getattr(method, name)}
    return method.model_copy(update=changed) if changed else method


# Any: a field of any method's config.
def _field(value: Any, name: str) -> Any:
    """Return a field of a method, with the content of its encoders; the same object without any."""
    if isinstance(value, MethodConfig):
        return _method_with_encoders(value, f"{name}.")
    if isinstance(value, tuple) and any(map(_names_weights, value)):
        return tuple(_with_content(item, name) if _names_weights(item) else item for item in value)
    return _with_content(value, name) if _names_weights(value) else value


# Any: a field of any method's config.
def _names_weights(value: Any) -> bool:
    """Return whether a field of a method is an encoder with weights that no `sha256` identifies: a file, or
    the folder of a run."""
    if not hasattr(value, "content") or getattr(value, "sha256", ""):
        return False
    place = Path(getattr(value, "weights", "")).expanduser()
    return bool(value.weights) and (place.is_file() or (names_run(value.name) and place.is_dir()))


def _with_content(encoder: Any, name: str) -> Any:
    file = Path(encoder.weights).expanduser()
    try:
        if names_run(encoder.name):
            content = registry.load("encoder", RUN).content(encoder)
        else:
            content = _sha256(file, tuple(stamp_of(file)))
    except OSError as error:
        raise UserError(f"method.{name}.weights = {encoder.weights}: {error.strerror}") from error
    if encoder.content and encoder.content != content:
        raise UserError(
            f"method.{name}.weights = {encoder.weights} holds other weights than this spec was planned with: "
            f"sha256 {content}, expected {encoder.content}; set method.{name}.weights to the original file"
        )
    return encoder.model_copy(update={"content": content})


@lru_cache(maxsize=16)
def _sha256(file: Path, stamp: tuple[int, ...]) -> str:
    """Return the sha256 of a file; a plan asks for it once a run."""
    from metrics.files.hashing import sha256_of

    return sha256_of(file)
