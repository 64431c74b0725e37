"""Which fields of `data` mean something to which data set: a field that is set and that nothing reads would
change a run's id and nothing else, so it is refused."""

from __future__ import annotations

from typing import Any

from harness.config.spec import DataSpec
from harness.data.dataset import Capabilities
from harness.errors import UserError

OWN = (
    "root", "resolution", "channels", "image_key", "label_key", "frames", "classes", "posterior", "codec", "codec_weights",
    "images",
)  # fmt: skip
"""Of some data sets only: those that a class names in `reads`."""
MIRRORED = ("image", "video")


def check_fields(spec: DataSpec, dataset: Any, modality: str) -> None:
    """Raises `UserError` for a field that this class of data sets does not read; one that names no `reads` is
    trusted."""
    if spec.flip and modality not in MIRRORED:
        raise UserError(f"data.flip = true mirrors pictures, and '{spec.name}' is {modality}; leave it out")
    reads = Capabilities(dataset).reads
    reads = OWN if reads is None else reads
    for name in OWN:
        value = getattr(spec, name)
        if value != DataSpec.model_fields[name].default and name not in reads:
            own = f" (its own: {', '.join(f'data.{one}' for one in reads)})" if reads else ""
            raise UserError(
                f"data.{name} = {value}: data set '{spec.name}' has no such field{own}; leave it out"
            )
