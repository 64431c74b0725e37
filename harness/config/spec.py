"""The spec of a run: frozen, validated, and addressed by a hash of its trajectory.

The trajectory is what can change the weights at a step: data, backbone, method, times, training and seed.
Evaluation is not part of it, and neither is `train.steps`, which is how far a run goes. So a run can be
extended, and measured in other ways later. harness/assembly/resolve.py combines presets, files and overrides
into a spec.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

import tomli_w
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic.config import JsonDict

from harness.backbone.sizes import size_named
from harness.config.parts import FLAT_NAMES, HasParts, flattened

NOT_HASHED: JsonDict = {"hashed": False}
"""`json_schema_extra` of a field that cannot change results, such as a path or a number of workers. It is not
part of the run id."""
HASHED_IF_SET: JsonDict = {"hashed": "unless default"}
"""`json_schema_extra` of a field that was added later. At its default it is not part of the run id, so that
older runs keep their ids."""

LARGEST = 1e300
"""Numbers of a list are below it; a float has no much larger ones."""
SIDE, COUNT, STEPS = 2**16, 10**7, 10**12
"""Largest sides, numbers of samples and numbers of steps; larger ones are mistakes that need all memory."""


class Section(BaseModel):
    """Base of every model in a spec."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# Any: the default is of the field's type, and the limits are those that pydantic's Field takes.
def _free(default: Any, **limits: Any) -> Any:
    return Field(default, json_schema_extra=NOT_HASHED, **limits)


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
    root: str = _free("")
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
    classes: int | None = Field(default=None, ge=1, le=COUNT, json_schema_extra=HASHED_IF_SET)
    """Number of classes of latents, for a plan made without the data."""
    posterior: Literal["sample", "mean"] = Field(default="sample", json_schema_extra=HASHED_IF_SET)
    """Draw a latent from its posterior each time it is read, or use the posterior's mean."""
    codec: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Codec that decodes latents, `family:PATH`; empty for the codec that encoded them."""
    codec_weights: str = _free("")
    """Folder of the codec's weights, if they have been moved."""
    images: str = _free("")
    """Location of the images that latents were encoded from, if they have been moved."""
    workers: int = _free(0, ge=0, le=SIDE)
    """Number of processes that load data; 0 loads in the training process."""
    origin: str = _free("")
    """Words that describe the data and how to get them, for the message about a missing `root`."""


class BackbonePart(Section):
    """Division of one part of a sample into tokens."""

    patch: int = Field(default=1, ge=1, le=SIDE, json_schema_extra=HASHED_IF_SET)
    """Spectrogram frames in one token of the sound of a video."""


class BackboneParts(Section):
    """The parts of a sample after the first; `patch` and `patch_time` of the backbone divide the first."""

    audio: BackbonePart = BackbonePart()

    def of(self, kind: str) -> BackbonePart:
        """Return the settings of a kind of part."""
        return dict(self).get(kind, BackbonePart())


class BackboneSpec(Section, HasParts):
    """The network."""

    flat_names: ClassVar = FLAT_NAMES["backbone"]

    kind: Literal["sit", "mmdit"] = Field(default="sit", json_schema_extra=HASHED_IF_SET)
    """`sit` is conditioned on class labels, `mmdit` on text."""
    size: str = "S"
    """Registered size, see `flowrace list sizes`, or DEPTHxWIDTHxHEADS such as 6x64x4."""
    patch: int = Field(default=2, ge=1, le=SIDE)
    """Side of a token in pixels, or its length in spectrogram frames for sound."""
    bottleneck: int = Field(default=0, ge=0, le=SIDE, json_schema_extra=HASHED_IF_SET)
    """Channels between two linear layers that embed a patch, as in JiT (128 for B and L, 256 for H); 0 for
    one layer."""
    patch_time: int = Field(default=1, ge=1, le=SIDE, json_schema_extra=HASHED_IF_SET)
    """Frames of a video in one token."""
    parts: BackboneParts = BackboneParts()
    """Settings of the parts of a sample after the first."""
    learn_sigma: bool = False
    """Add the variance channels of the released networks; they are not trained."""
    positions: Literal["sincos", "rotary"] = Field(default="sincos", json_schema_extra=HASHED_IF_SET)
    """Position code added to the tokens, as released, or rotation of queries and keys in every block."""
    initial: Literal["zero", "released"] = Field(default="zero", json_schema_extra=HASHED_IF_SET)
    """Initial weights: modulation and output zero as in SiT, or PyTorch's defaults as in REPA's MMDiT."""
    text_time: Literal["mean", "min", "clean"] = Field(default="mean", json_schema_extra=HASHED_IF_SET)
    """Time of the text tokens if image tokens have different times: the mean of their embeddings, or the
    smallest. With `clean` it is always 0."""

    @property
    def depth(self) -> int:
        """Number of blocks."""
        size = size_named(self.size)
        if size is None:
            raise ValueError(f"backbone.size = {self.size} is unknown")
        return size.depth


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
    weights: str = _free("")
    """File or folder of the encoder's weights, if its name does not include one."""
    sha256: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Expected checksum of the weights; empty accepts any."""
    content: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Hash of `weights`, filled in if it exists: the run id depends on it, not on the path."""
    download: bool = _free(False)
    """Allow downloading the weights from the hub; by default nothing is downloaded."""


class TimeSpec(Section):
    """The distribution of times p(t), the same for every method."""

    kind: Literal["uniform", "logit_normal"] = "uniform"
    """The distribution of t before the shift."""
    mean: float = 0.0
    """Mean of the normal whose sigmoid is t (logit_normal only)."""
    std: float = Field(default=1.0, gt=0)
    """Standard deviation of that normal."""
    shift: float = Field(default=1.0, gt=0)
    """alpha of s(alpha, t) = alpha t / (1 + (alpha - 1) t); above 1 is more noise. `dimension` is
    sqrt(m / 4096) of latents with m values, and at least 1 (RAE, arXiv 2510.11690)."""
    late: float = Field(default=0.0, ge=0, le=1, json_schema_extra=HASHED_IF_SET)
    """Share of samples whose time is uniform on [0.95, 1] instead (Self-Flow App. A.2, video: 0.05)."""
    apart: bool = Field(default=False, json_schema_extra=HASHED_IF_SET)
    """Draw a separate time for each part of a sample that has several: a video with its sound, or the
    observations and actions of a robot."""


class FlowSpec(Section):
    """The output of the network, and the weight of the flow loss at each time."""

    prediction: Literal["velocity", "x"] = Field(default="velocity", json_schema_extra=HASHED_IF_SET)
    """The network predicts the velocity, or the clean sample `x`, from which the velocity is computed, as JiT
    does. The loss is on the velocity in both cases, and samplers integrate it."""
    weighting: Literal["none", "min_snr", "log_variance"] = Field(
        default="none", json_schema_extra=HASHED_IF_SET
    )
    """Weight of the flow loss by time: none, `min_snr` of the clean sample's error, or EDM2's learned
    `log_variance`."""
    gamma: float = Field(default=5.0, gt=0, json_schema_extra=HASHED_IF_SET)
    """Largest signal-to-noise ratio that counts (min_snr only)."""


class StartSpec(Section):
    """The weights that a run begins with, if they are imported ones instead of initial ones."""

    weights: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Hash of the weights that `flowrace import` read; empty for initial weights."""
    step: int = Field(default=0, ge=0, json_schema_extra=HASHED_IF_SET)
    """Step of these weights; training counts on from it."""
    file: str = _free("")
    """File of these weights, if the run's own folder does not have it."""
    layers: Literal["all", "shared"] = Field(default="all", json_schema_extra=HASHED_IF_SET)
    """Load all layers, or those that the networks share; with `shared` the layers of further parts, for
    example actions, begin with initial weights."""
    frozen: bool = Field(default=False, json_schema_extra=HASHED_IF_SET)
    """Train the layers of further parts alone."""
    arm: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Arm of a study's `[pretraining]` whose run of the same seed has these weights; empty for none."""
    run: str = Field(default="", json_schema_extra=HASHED_IF_SET)
    """Id of the run whose EMA weights these are, filled in by the plan of a study; `file` is its folder."""
    run_step: int = Field(default=0, ge=0, json_schema_extra=HASHED_IF_SET)
    """Step of that run."""

    @property
    def given(self) -> bool:
        """True if a run begins with given weights."""
        return bool(self.weights or self.run)


Beta = Annotated[float, Field(ge=0, lt=1)]
DECAYS_TO_THE_END = ("linear", "cosine")
"""Decays of the learning rate that depend on the number of steps of a run."""


class OptimizerSpec(Section):
    """The optimizer. Its learning rate, decay rates and weight decay are those of `train`."""

    name: Literal["adamw", "muon", "adam_atan2"] = Field(default="adamw", json_schema_extra=HASHED_IF_SET)
    """`muon` orthogonalises the updates of the blocks' matrices, and leaves the rest to AdamW; `adam_atan2`
    needs the extra `optimizers`."""
    momentum: float = Field(default=0.95, ge=0, lt=1, json_schema_extra=HASHED_IF_SET)
    """Decay rate of Muon's momentum (muon only)."""
    adjust_lr: Literal["match_rms_adamw", "original"] = Field(
        default="match_rms_adamw", json_schema_extra=HASHED_IF_SET
    )
    """Factor of the learning rate for a matrix of A x B: 0.2 sqrt(max(A, B)), with which rates of AdamW can
    be used, or Jordan's sqrt(max(1, A / B)) (muon only)."""


class TrainSpec(Section):
    """Length, batch, learning rate and precision of training."""

    steps: int = Field(default=400_000, ge=1, le=STEPS)
    """Number of optimizer steps."""
    batch_size: int = Field(default=256, ge=1, le=COUNT)
    """Samples per step, over all processes."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate after the warm-up."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moment of AdamW and Adam-atan2."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay, decoupled from the gradient."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up of the learning rate."""
    decay: Literal["none", "linear", "cosine", "inverse_sqrt"] = Field(
        default="none", json_schema_extra=HASHED_IF_SET
    )
    """Decay of the learning rate: `linear` or `cosine` to zero between the warm-up and the last step, so that
    the number of steps is part of the run's trajectory and the run cannot be extended; or `inverse_sqrt` from
    `decay_after` on, as in EDM2, which knows no last step."""
    decay_after: int = Field(default=70_000, ge=1, le=STEPS, json_schema_extra=HASHED_IF_SET)
    """Step t from which the learning rate falls as sqrt(t / step) (inverse_sqrt only)."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    label_drop: float = Field(default=0.1, ge=0, le=1)
    """Probability that a sample loses its label, for guidance."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass; weights, losses and the optimizer stay in float32."""
    accumulate: int = _free(1, ge=1, le=COUNT)
    """Micro-batches per step and process: the same batch with less memory."""
    checkpoint_every: int = _free(10_000, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1)] | Literal["evaluations", "all"] = _free("evaluations")
    """Number of newest checkpoints to keep. `evaluations` keeps two, and the EMA weights of every evaluation,
    so that other metrics can be computed later; `all` keeps every checkpoint."""
    keep_precision: Literal["float32", "bfloat16"] = _free("float32")
    """Precision of the EMA weights that are kept for later evaluations; bfloat16 halves the disk space and
    rounds the weights."""
    log_every: int = _free(100, ge=1)
    """Steps between training lines in the record."""
    log_gradients_every: int = _free(0, ge=0, le=STEPS)
    """Steps between readings of the gradients of flow loss and alignment, separately; 0 for none. A reading
    repeats the passes of a step, is not counted as training, and changes no bit of the run."""


class EmaSpec(Section):
    """One exponential moving average per run: the teacher and the model that is evaluated."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Weight of the previous average in a step."""
    warmup: bool = False
    """Use min(decay, (1 + step) / (10 + step)), for short runs."""


# Any: a value of a table before its type is known.
def _scales(value: Any) -> Any:
    """Return the scales of guidance, a single one as a number; raises ValueError if they are none."""
    scales = value if isinstance(value, list | tuple) else [value]
    known = all(type(scale) in (int, float) and 0 <= scale < LARGEST for scale in scales)
    if not scales or not known or len({*scales}) < len(scales):
        raise ValueError(
            "expected a number of at least 0, or different ones in a list, for example [1.0, 2.0]"
        )
    numbers = [float(scale) for scale in scales]
    return tuple(numbers) if len(numbers) > 1 else numbers[0]


Scales = Annotated[float | tuple[float, ...], BeforeValidator(_scales)]
"""A scale of classifier-free guidance, or several."""


class EvalSpec(Section):
    """Evaluation of the EMA weights."""

    guiding_fields: ClassVar[tuple[str, ...]] = (
        "method_guidance",
        "method_guidance_low",
        "method_guidance_high",
    )
    """Fields that have no effect unless the method guides."""

    every: int = Field(default=50_000, ge=1)
    """Steps between evaluations."""
    samples: int = Field(default=10_000, ge=2, le=COUNT)
    """Number of samples of an evaluation."""
    metrics: tuple[str, ...] = ("fd:local",)
    """Names of metrics, for example fd:local, fid, kid."""
    sampler: Literal["euler", "heun", "euler_maruyama"] = "euler_maruyama"
    """Integrator, see `flowrace list samplers`."""
    sampler_steps: int = Field(default=250, ge=1, le=COUNT)
    """Steps from noise to sample."""
    sampler_shift: float = Field(default=1.0, gt=0, json_schema_extra=HASHED_IF_SET)
    """alpha of s(alpha, t), by which the sampler's times move; above 1 they are denser at noise. `dimension`
    is that of the latents, as for `time.shift`."""
    precision: Literal["float32", "bfloat16"] = Field(default="float32", json_schema_extra=HASHED_IF_SET)
    """Precision of the network in sampling."""
    guidance: Scales = 1.0
    """Scale of classifier-free guidance, at least 0; 1 is no guidance. Curves and targets use the first scale
    of a list, for example [1.0, 2.0], and the others are measured at the same steps."""
    guidance_low: float = Field(default=0.0, ge=0, le=1)
    """Lowest time with guidance."""
    guidance_high: float = Field(default=1.0, ge=0, le=1)
    """Highest time with guidance."""
    method_guidance: float = Field(default=1.0, ge=0, json_schema_extra=HASHED_IF_SET)
    """Scale of the guidance that some methods have themselves, for example internal_guidance; 1 is no
    guidance. It combines with classifier-free guidance."""
    method_guidance_low: float = Field(default=0.0, ge=0, le=1, json_schema_extra=HASHED_IF_SET)
    """Lowest time with the method's guidance."""
    method_guidance_high: float = Field(default=1.0, ge=0, le=1, json_schema_extra=HASHED_IF_SET)
    """Highest time with the method's guidance."""
    labels: Literal["balanced", "random"] = "random"
    """Classes in equal numbers, or drawn uniformly."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """Seed of the noise and labels of evaluations, the same for every run."""
    replicates: int = Field(default=1, ge=1, le=SIDE, json_schema_extra=HASHED_IF_SET)
    """Evaluations at each step, with separate noise and labels; the mean is recorded, from 2 on with its
    interval."""
    weights: dict[str, str] = _free({})
    """Extractor -> file of its weights, if its name does not include one."""
    reference: str = _free("")
    """File of statistics to compare with instead of the training data: of `eval --save-stats`, or ADM's npz.
    """
    batch_size: int = _free(256, ge=1, le=COUNT)
    """Samples per pass of the network."""
    grid: int = _free(40, ge=1, le=SIDE)
    """Number of images in the sample grid."""

    @property
    def unset(self) -> set[str]:
        """The later fields that have no effect; hashes leave them out, because earlier ones lack them."""
        guiding = set(self.guiding_fields) if self.method_guidance == 1 else set()
        return guiding | ({"sampler_shift"} if self.sampler_shift == 1 else set())

    @property
    def scale(self) -> float:
        """The scale of classifier-free guidance, the first one if there are several."""
        return self.guidance[0] if isinstance(self.guidance, tuple) else self.guidance

    @property
    def by_guidance(self) -> tuple[Self, ...]:
        """The evaluation under each scale of guidance, in order."""
        scales = self.guidance if isinstance(self.guidance, tuple) else (self.guidance,)
        return tuple(self.model_copy(update={"guidance": scale}) for scale in scales)


class RuntimeSpec(Section):
    """Execution of a run. None of these fields is part of the run id."""

    device: str = _free("auto")
    """auto, cpu, cuda or cuda:N."""
    threads: int = _free(0, ge=0, le=SIDE)
    """CPU threads of one process; 0 for all cores."""
    compile: bool = _free(False)
    """Use torch.compile."""
    checkpoint_activations: bool = _free(False)
    """Recompute the blocks' activations in the backward pass: less memory, one more forward pass."""
    shard: bool = _free(False)
    """Shard parameters, optimizer and EMA over all processes (FSDP2) instead of keeping a copy in each."""


class Needs(NamedTuple):
    """Requirements of a method on the trainer. A need at its default costs nothing."""

    # Any: an `EncoderSpec` of methods/common/alignment.py, or a method's own description of an encoder.
    encoders: tuple[Any, ...] = ()
    """The choice of each frozen encoder whose view the batch must contain."""
    summary: bool = False
    """Put the encoder's summary into its view. The network gets one more token of its width, generated with
    the image."""
    attention: int = 0
    """Number of the encoder's last blocks whose attention maps are in its view."""
    teacher: bool = False
    """Run a forward pass of the EMA network."""
    times: int = 1
    """Noise levels per sample; 0 for one per token."""
    taps: tuple[int, ...] = ()
    """Student layers whose output the loss reads (1-based)."""
    heads: tuple[int, ...] = ()
    """Student layers whose queries and keys the loss reads (1-based)."""
    outputs: tuple[int, ...] = ()
    """Layers (1-based) with a further final layer, whose velocity the loss or `velocity` reads. They are part
    of the network from the first step to the last, and so of its checkpoints, EMA and cost."""
    fused: tuple[int, ...] = ()
    """First and last block (1-based) whose output is joined with the tokens before them, by a learned mask
    token and a linear layer (harness/backbone/routing.py). They too are part of the network; () for none."""
    undropped: bool = False
    """Put texts before drop into the batch, where labels before drop always are."""
    group: int = 1
    """Number of consecutive samples that the loss compares with each other; no micro-batch splits them."""
    guided: float | None = None
    """Scale of the guidance of an encoder's features, which are then those of the student's noised samples
    under their conditions: f_null + scale (f_condition - f_null). None for features of clean samples."""
    features: int = 0
    """Number of channels of an encoder's features that the network generates together with the sample."""

    @property
    def generates(self) -> bool:
        """True if the network generates an encoder's output too, which evaluations cannot compute."""
        return self.summary or self.features > 0


class Schedule(Section):
    """Schedule of the alignment weight, an option of every method. Early stop: HASTE, arXiv 2505.16792."""

    until: int | None = Field(default=None, ge=0)
    """Last step with alignment; after it neither teacher nor encoder runs. None for every step."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the weight rises linearly to its full value."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Decay of the weight to zero between warm-up and `until`."""

    @model_validator(mode="after")
    def _decay_has_an_end(self) -> Self:
        if self.decay != "none" and (self.until is None or self.until <= self.warmup):
            raise ValueError(f"decay = '{self.decay}' requires `until` > {self.warmup} (the warm-up)")
        return self

    def factor(self, step: int) -> float:
        """Return the factor of the weight at a step (1-based), in [0, 1]."""
        if self.until is not None and step > self.until:
            return 0.0
        if step < self.warmup:
            return step / self.warmup
        if self.decay == "none" or self.until is None:
            return 1.0
        left = (self.until - step) / (self.until - self.warmup)
        return left if self.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


class MethodConfig(Section):
    """Base of every method's Config."""

    # Any: values of any setting.
    off: ClassVar[dict[str, Any]] = {}
    """Settings under which the method is plain flow matching, bit for bit."""
    # Any: rows of the search space, as a study's TOML file has them.
    space: ClassVar[dict[str, Any]] = {}
    """Search space of `flowrace tune`, around the published values: setting -> `low`, `high` and perhaps
    `log`, or `choices`."""

    # Any: each method narrows it to a Literal of its name, which the type of a mutable field would forbid.
    name: Any
    """Registered name of the method, see `flowrace list methods`."""
    schedule: Schedule = Schedule()

    @property
    def strength(self) -> float:
        """Weight of the alignment term before its schedule; 0 for a method without alignment."""
        return 0.0

    @property
    def scheduled(self) -> bool:
        """True if `schedule` has an effect on these settings."""
        return type(self).strength is not MethodConfig.strength

    @property
    def until(self) -> int | None:
        """The last step of what the schedule ends; None if it does not end."""
        return self.schedule.until

    @property
    def horizon(self) -> str:
        """The setting by which a step depends on the number of steps of the run; empty if none does."""
        return ""

    @property
    def unguided(self) -> str:
        """The reason why nothing guides at sampling with these settings; empty if something may."""
        return "is switched off" if self.is_off else ""

    @property
    def is_off(self) -> bool:
        """True if these settings make the method plain flow matching."""
        off = type(self).off
        return bool(off) and all(getattr(self, name) == value for name, value in off.items())

    def weight(self, step: int) -> float:
        """Return the weight of the alignment term at a step (1-based)."""
        return self.strength * self.schedule.factor(step)

    def flow_weight(self, step: int) -> float:
        """Return the weight of the flow loss at a step (1-based), 1 by default."""
        return 1.0

    def encodes(self, step: int) -> bool:
        """Return whether the encoders run at a step (1-based)."""
        return bool(self.needs().encoders) and self.weight(step) > 0

    @property
    def terms(self) -> Mapping[str, MethodConfig]:
        """The settings of each term of a stack, by name; of a single method, its own."""
        return {self.name: self}

    def resolved(self, backbone: BackboneSpec) -> Self:
        """Return the config with every default filled in that depends on the backbone.

        Raises ValueError ("field = value: what is allowed") for a setting that this backbone cannot have.
        """
        if self.schedule != Schedule() and not self.scheduled:
            raise ValueError(f"schedule: {self.name} has no alignment term to schedule; leave it out")
        return self

    def needs(self) -> Needs:
        """Return the requirements of these settings while they align; plain flow matching has none."""
        return Needs()


class RunSpec(Section):
    """Everything that defines a run."""

    seed: int = Field(default=0, ge=0, lt=2**64)
    """Seed of every random stream of the training run."""
    data: DataSpec = DataSpec()
    backbone: BackboneSpec = BackboneSpec()
    text: TextSpec = TextSpec()
    method: SerializeAsAny[MethodConfig]
    time: TimeSpec = TimeSpec()
    flow: FlowSpec = FlowSpec()
    train: TrainSpec = TrainSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    ema: EmaSpec = EmaSpec()
    start: StartSpec = StartSpec()
    eval: EvalSpec = EvalSpec()
    runtime: RuntimeSpec = RuntimeSpec()

    @property
    def id(self) -> str:
        """The run id: 12 hex digits of the sha256 of the trajectory."""
        return _short_hash(self.trajectory)

    @property
    def trajectory(self) -> dict[str, Any]:
        """The fields that can change the weights at a step, as JSON."""
        fields = _hashed(self)
        fields.pop("eval", None)
        if not self.horizon:
            fields.get("train", {}).pop("steps", None)
        return fields

    @property
    def horizon(self) -> str:
        """The setting that makes the number of steps part of the trajectory; empty if none does."""
        return "train.decay" if self.train.decay in DECAYS_TO_THE_END else self.method.horizon

    @property
    def legacy_id(self) -> str:
        """The run id of versions up to 0.1, which hashed evaluation and number of steps too, but not the
        content of an encoder's file."""
        fields = _hashed(self)
        # These versions knew one scale of guidance, and further ones need no new run.
        fields["eval"] |= {"guidance": self.eval.scale}
        return _short_hash(fields | {"method": _without(fields["method"], "content")})

    @property
    def by_guidance(self) -> tuple[Self, ...]:
        """The spec with its evaluation under each scale of guidance, in order."""
        return tuple(self.model_copy(update={"eval": one}) for one in self.eval.by_guidance)

    def to_toml(self) -> str:
        """Return the spec as the text of `spec.toml`."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


# Any: nested tables of a spec as plain data.
def _without(value: Any, name: str) -> Any:
    """Return nested tables without the fields of a name."""
    if isinstance(value, Mapping):
        return {key: _without(item, name) for key, item in value.items() if key != name}
    return [_without(item, name) for item in value] if isinstance(value, list | tuple) else value


def canonical(spec: BaseModel) -> str:
    """Return the fields of a model that can change results, as JSON with sorted keys and no spaces."""
    return _canonical(_hashed(spec))


def _canonical(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _short_hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields).encode()).hexdigest()[:12]


def _hashed(model: BaseModel) -> dict[str, Any]:
    kept, unset = {}, model.unset if isinstance(model, EvalSpec) else ()
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if (info.json_schema_extra or {}) == NOT_HASHED:
            continue
        if info.json_schema_extra == HASHED_IF_SET and (value == info.default or name in unset):
            continue
        if isinstance(value, BaseModel):
            if nested := _hashed(value):
                kept[name] = nested
        elif isinstance(value, tuple):
            kept[name] = [_hashed(item) if isinstance(item, BaseModel) else item for item in value]
        else:
            kept[name] = value
    return flattened(kept, model.flat_names) if isinstance(model, HasParts) else kept


def _without_none(value: Any) -> Any:
    """Leave out fields without a value, because TOML has no null; they read back as their default."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value
