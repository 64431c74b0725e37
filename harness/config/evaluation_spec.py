"""The evaluation of a spec: metrics, samples, sampler and guidance."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field

from harness.config.section import COUNT, HASHED_IF_SET, LARGEST, SIDE, Section, unhashed


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
    weights: dict[str, str] = unhashed({})
    """Extractor -> file of its weights, if its name does not include one."""
    reference: str = unhashed("")
    """File of statistics to compare with instead of the training data: of `eval --save-stats`, or ADM's npz.
    """
    batch_size: int = unhashed(256, ge=1, le=COUNT)
    """Samples per pass of the network."""
    grid: int = unhashed(40, ge=1, le=SIDE)
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
