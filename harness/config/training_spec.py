"""The training of a spec: times, weight of the loss, first weights, optimizer, learning rate and EMA."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.config.section import COUNT, HASHED_IF_SET, STEPS, Section, unhashed


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
    file: str = unhashed("")
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
    accumulate: int = unhashed(1, ge=1, le=COUNT)
    """Micro-batches per step and process: the same batch with less memory."""
    checkpoint_every: int = unhashed(10_000, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: Annotated[int, Field(ge=1)] | Literal["evaluations", "all"] = unhashed("evaluations")
    """Number of newest checkpoints to keep. `evaluations` keeps two, and the EMA weights of every evaluation,
    so that other metrics can be computed later; `all` keeps every checkpoint."""
    keep_precision: Literal["float32", "bfloat16"] = unhashed("float32")
    """Precision of the EMA weights that are kept for later evaluations; bfloat16 halves the disk space and
    rounds the weights."""
    log_every: int = unhashed(100, ge=1)
    """Steps between training lines in the record."""
    log_gradients_every: int = unhashed(0, ge=0, le=STEPS)
    """Steps between readings of the gradients of flow loss and alignment, separately; 0 for none. A reading
    repeats the passes of a step, is not counted as training, and changes no bit of the run."""


class EmaSpec(Section):
    """One exponential moving average per run: the teacher and the model that is evaluated."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Weight of the previous average in a step."""
    warmup: bool = False
    """Use min(decay, (1 + step) / (10 + step)), for short runs."""
