"""The data of a spec: samples and their parts, and the captions that a run is conditioned on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from harness.config.parts import FLAT_NAMES, HasParts
from harness.config.section import COUNT, HASHED_IF_SET, SIDE, Section, unhashed


class DataPart(Section):
    """One part of a sample that has several, for example the sound of a video."""

    weight: float = Field(default=0.5, ge=0, json_schema_extra=HASHED_IF_SET)
    """Weight of this part in the loss; 0 removes the part from the data."""
    alone: float = Field(default=0.0, ge=0, le=1, json_schema_extra=HASHED_IF_SET)
    """Share of training samples that consist of this part only."""


class DataParts(Section):
    """The parts of a sample that has several: a video with its sound, or with the state and the actions of a
    robot."""

    video: DataPart = DataPart()
    audio: DataPart = DataPart()
    state: DataPart = DataPart()
    action: DataPart = DataPart()

    @model_serializer(mode="wrap")
    def _write_set_parts(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out parts that version 0.2 did not have while they are at their defaults."""
        later = [kind for kind in ("state", "action") if self.of(kind) == DataPart()]
        return {kind: settings for kind, settings in dump(self).items() if kind not in later}

    def of(self, kind: str) -> DataPart:
        """Return the settings of a kind of part."""
        return dict(self)[kind]


class DataSpec(Section, HasParts):
    """The training data. `root` is only a location; `fingerprint` identifies the content."""

    flat_names: ClassVar = FLAT_NAMES["data"]

    if TYPE_CHECKING:
        # pydantic adds this method to a frozen model.
        def __hash__(self) -> int: ...

    name: str = "digits"
    """Registered name of the data set, see `flowrace list datasets`."""
    root: str = unhashed("")
    """File or folder that holds the data."""
    fingerprint: str = ""
    """Hash of the content, filled in if `root` exists."""
    resolution: int | None = Field(default=None, ge=1, le=SIDE)
    """Side in pixels after a resize of the shorter side and a centre crop; None keeps the images' size."""
    channels: Literal[1, 3] | None = None
    """Convert images to grey (1) or RGB (3); None keeps the images' channels."""
    parts: DataParts = DataParts()
    """Settings of the parts of a video with its sound, or of a robot."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the data that is kept from training, as the reference of evaluations."""
    flip: bool = False
    """Mirror half of the training images."""
    image_key: str = ""
    """Name of the array or column of images; empty for the usual names."""
    label_key: str = ""
    """Name of the array or column of labels; empty for the usual names, `none` for data without labels."""
    caption_key: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Name of the column of captions, or `usual` for the usual names; empty if captions are not read. A run
    with a text encoder sets `usual` by itself."""
    frames: int | None = Field(default=None, ge=1, le=COUNT, json_schema_extra=HASHED_IF_SET)
    """Frames of a video, or log-mel frames of a recording; None for the data set's default."""
    chunk: int | None = Field(default=None, ge=1, le=SIDE, json_schema_extra=HASHED_IF_SET)
    """Actions of a robot that are generated together; None for 6 (Self-Flow App. E)."""
    task: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Task of the demonstrations of a robot, which `flowrace rollout` acts in."""
    episodes: int | None = Field(default=None, ge=1, le=COUNT, json_schema_extra=HASHED_IF_SET)
    """Demonstrations that a robot is trained on: the first ones that are not held out; None for all."""
    given: Literal["", "first_frame", "top_half"] = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Tokens that are given instead of generated: the first frame of a video, or the upper half of an image.
    Evaluations take them from held-out samples."""
    given_noise: float = Field(default=0.0, ge=0, le=1, json_schema_extra=HASHED_IF_SET)
    """Largest time of a given frame in training, drawn uniformly from 0 for each sample (Self-Flow App. E:
    0.2). Samplers and policies have it clean."""
    classes: int | None = Field(default=None, ge=1, le=COUNT, json_schema_extra=HASHED_IF_SET)
    """Number of classes of latents, for a plan made without the data."""
    posterior: Literal["sample", "mean"] = Field(default="sample", json_schema_extra=HASHED_IF_SET)
    """Draw a latent from its posterior each time it is read, or use the posterior's mean."""
    codec: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Codec that decodes latents, `family:PATH`; empty for the codec that encoded them."""
    codec_weights: str = unhashed("")
    """Folder of the codec's weights, if they have been moved."""
    images: str = unhashed("")
    """Location of the images that latents were encoded from, if they have been moved."""
    workers: int = unhashed(0, ge=0, le=SIDE)
    """Number of processes that load data; 0 loads in the training process."""
    origin: str = unhashed("")
    """Words that describe the data and how to get them, for the message about a missing `root`."""


class TextSpec(Section):
    """The captions that a run is conditioned on, and the frozen encoder that reads them."""

    encoder: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Registered name of the text encoder, see `flowrace list text_encoders`; empty for class labels."""
    length: int = Field(default=77, ge=1, json_schema_extra=HASHED_IF_SET)
    """Number of text tokens, those of the encoder included; longer captions are cut."""
    layer: int | None = Field(default=None, ge=1, json_schema_extra=HASHED_IF_SET)
    """Block of the encoder (1-based) whose output is used; None for its last hidden state."""
    pooled: bool = Field(default=False, json_schema_extra=HASHED_IF_SET)
    """Use one vector per caption, pooled as the encoder defines it, instead of one per token."""
    padding: Literal["masked", "attended"] = Field(default="masked", json_schema_extra=HASHED_IF_SET)
    """Attend to real tokens only, or also to padding, as REPA's released network does."""
    weights: str = unhashed("")
    """File or folder of the encoder's weights, if its name does not include one."""
    sha256: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Expected checksum of the weights; empty accepts any."""
    content: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Hash of `weights`, filled in if it exists: the run id depends on it, not on the path."""
    download: bool = unhashed(False)
    """Allow downloading the weights from the hub; by default nothing is downloaded."""
