"""Captions that a generated data set has if a run reads them, which `data.caption_key` states.

Without them the content, the fingerprint and the run ids are those of the data without captions.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.config.data_spec import DataSpec
from harness.data.dataset import USUAL_CAPTIONS
from harness.errors import UserError
from harness.runtime.random_streams import Streams


def wants_captions(spec: DataSpec) -> bool:
    """Return whether a spec reads captions; raises `UserError` for the name of a column."""
    if spec.caption_key not in ("", USUAL_CAPTIONS):
        raise UserError(
            f"data.caption_key = {spec.caption_key}: the captions of {spec.name} are generated; leave it out"
        )
    return bool(spec.caption_key)


def some_of(described: Sequence[tuple[str, ...]], stream: str) -> list[tuple[str, ...]]:
    """Return the first one to all captions of each sample; the number is drawn from a stream."""
    drawn = Streams(0).uniform(stream, range(len(described))).tolist()
    return [texts[: int(u * len(texts)) + 1] for texts, u in zip(described, drawn, strict=True)]


def caption_bytes(captions: Sequence[tuple[str, ...]]) -> bytes:
    """Return the bytes of all captions that a fingerprint covers."""
    return "\n".join("\t".join(texts) for texts in captions).encode()
