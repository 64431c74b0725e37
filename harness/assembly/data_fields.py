"""The check that a data set reads every field of `data` that is set.

A field that is set and not read would change the run id and nothing else.
"""

from __future__ import annotations

from typing import Any

from harness.config.data_spec import DataSpec, TextSpec
from harness.data.dataset import USUAL_CAPTIONS, Capabilities
from harness.errors import UserError

OWN = (
    "root", "resolution", "channels", "image_key", "label_key", "caption_key", "frames", "classes",
    "chunk", "task", "episodes", "posterior", "codec", "codec_weights", "images",
)  # fmt: skip
"""Fields that only some data sets read: those that a class lists in `reads`."""
MIRRORED = ("image", "video")


def with_captions(spec: DataSpec, text: TextSpec, dataset: Any) -> DataSpec:
    """Return the data of a run, whose captions are read if it has a text encoder.

    Raises `UserError` for a class of data sets without captions, and for fields of `text` without an encoder.
    """
    if not text.encoder:
        for name in TextSpec.model_fields:
            if (value := getattr(text, name)) != TextSpec.model_fields[name].default:
                raise UserError(
                    f"text.{name} = {value} belongs to a text encoder; set text.encoder, for example to "
                    "minilm, or leave it out"
                )
        return spec
    able = Capabilities(dataset)
    if "caption_key" in (able.reads or ()):
        return spec if spec.caption_key else spec.model_copy(update={"caption_key": USUAL_CAPTIONS})
    if not able.captioned:
        raise UserError(
            f"text.encoder = {text.encoder} needs captions, but data set '{spec.name}' has none; choose "
            "data.name=prompts, bounce or words, or parquet, folder or webdataset with captions"
        )
    return spec


def check_fields(spec: DataSpec, dataset: Any, modality: str) -> None:
    """Raise `UserError` for a field that this class of data sets does not read. A class without `reads` may
    read any."""
    if spec.flip and modality not in MIRRORED:
        raise UserError(f"data.flip = true mirrors pictures, but '{spec.name}' is {modality}; leave it out")
    reads = Capabilities(dataset).reads
    reads = OWN if reads is None else reads
    for name in OWN:
        value = getattr(spec, name)
        if value != DataSpec.model_fields[name].default and name not in reads:
            known = f" (it reads {', '.join(f'data.{field}' for field in reads)})" if reads else ""
            raise UserError(
                f"data.{name} = {value}: data set '{spec.name}' has no such field{known}; leave it out"
            )
