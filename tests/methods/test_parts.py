"""Objectives on video, on sound, and on both in one sequence: weights, times and masks by part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config import registry
from harness.config.data_spec import DataSpec
from harness.costs.flops import count_spec
from harness.data.generated.bounce import Bounce
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.train.objective import Objective
from tests.support.conformance_runs import SLOW
from tests.support.modal import MODALITIES, REFUSED, built, method_words, modal
from tests.support.runs import losses, part, trained

METHODS = sorted(registry.METHODS)
pytestmark = pytest.mark.usefixtures("quick_networks")


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in METHODS]
)
def test_every_method_runs_or_states_why_not(method: str, modality: str) -> None:
    if reason := REFUSED.get((modality, method)):
        with pytest.raises(UserError, match=reason):
            modal(modality, *method_words(method))
        return
    run = built(modal(modality, *method_words(method)))
    # Late enough for a flow loss that is ramped up.
    batch = run.feed.batch(np.arange(8), step=60_000)
    views = tuple(
        encoder.view(batch.x0, summary=run.method.needs().summary, attention=run.method.needs().attention)
        for encoder in run.encoders
    )
    batch = type(batch)(**{**vars(batch), "views": views})
    draw = run.method.draw(run.streams, batch)
    # At the released initialisation the output is zero: let every path carry signal.
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    total, parts = Objective(run)(batch, draw)
    total.backward()
    assert all(map(torch.isfinite, (total, *parts.values())))
    silent = [name for name, p in run.model.named_parameters() if p.grad is None or not p.grad.any()]
    # Without the flow loss, nothing reaches the layers after the last alignment.
    trained = run.method.config.flow_weight(batch.step) > 0
    assert not trained or not silent or silent == ["extra_embedder.proj.weight"]


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(
    "method",
    [
        name if name in ("flow", "self_flow") else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
    ],
)
def test_cost_of_every_method_is_counted(method: str, modality: str) -> None:
    """A teacher or an encoder costs more than plain flow matching. A lower cost is declared."""
    if (modality, method) in REFUSED:
        pytest.skip(REFUSED[modality, method])
    spec = modal(modality, *method_words(method))
    flow, cost, needs = count_spec(modal(modality)).total, count_spec(spec).total, spec.method.needs()
    least, _ = registry.load("method", method).student_cost
    assert cost > flow > 0 if needs.teacher or needs.encoders else cost >= least * flow > 0
    assert (cost < flow) == (least < 1)


class Silent:
    """Bounce's videos as a separate data set, made independently."""

    modality, classes = "video", 10

    def __init__(self, spec: DataSpec) -> None:
        self._bounce = Bounce(spec)
        self.shape, self.fingerprint = self._bounce.shape, self._bounce.fingerprint

    def __len__(self) -> int:
        return len(self._bounce)

    def sample(self, index: int) -> Any:
        x, label = self._bounce.sample(index)
        return type(self._bounce.sample(0))(x[: int(np.prod(self.shape))].reshape(self.shape), label)

    def key(self, index: int) -> bytes:
        return self._bounce.key(index)


@pytest.mark.parametrize("method", ["flow", pytest.param("self_flow", marks=pytest.mark.slow)])
def test_part_of_weight_zero_is_removed(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.DATASETS, "silent", f"{__name__}:Silent")
    name, only = f"method.name={method}", "eval.metrics=['fd:video:local']"
    joint = modal("joint", name, only, "data.audio_weight=0.0", "data.video_weight=1.0")
    alone = modal("joint", name, only, "data.name=silent")
    one, other = trained(joint, tmp_path), trained(alone, tmp_path)
    assert one.id != other.id
    assert losses(one) == losses(other) and part(one, "model") == part(other, "model")
    assert [e["metrics"] for e in one.of("eval")] == [e["metrics"] for e in other.of("eval")]


def test_loss_of_a_joint_sample_is_the_weighted_sum_of_its_parts() -> None:
    run = built(modal("joint", "data.video_weight=0.3", "data.audio_weight=0.7"))
    batch = run.feed.batch(np.arange(4))
    draw = run.method.draw(run.streams, batch)
    _, parts = Objective(run)(batch, draw)
    # The output of an untrained network is 0.
    error = (batch.x0 - draw.noise).double().square().numpy()
    size = int(np.prod(open_dataset(run.spec.data).shape))
    expected = 0.3 * error[:, :size].mean() + 0.7 * error[:, size:].mean()
    assert parts["flow"].item() == pytest.approx(expected, rel=1e-6)


def test_every_part_has_separate_times_and_masks() -> None:
    more = (
        "method.name=self_flow",
        "method.mask_ratio=0.1",
        "method.mask_ratio_audio=0.5",
        "time.apart=true",
    )
    run = built(modal("joint", *more))
    batch = run.feed.batch(np.arange(3000))
    draw = run.method.draw(run.streams, batch)
    tokens, video = run.model.config.tokens, run.model.config.parts[0].tokens
    assert draw.times.levels.shape == (3000, 4) and draw.times.which.shape == (3000, tokens)
    masked = (draw.times.which >= 2).float()
    assert masked[:, :video].mean().item() == pytest.approx(0.1, abs=0.01)
    assert masked[:, video:].mean().item() == pytest.approx(0.5, abs=0.01)
    assert ((draw.times.which % 2 == 1) == (torch.arange(tokens) >= video)).all()
    assert torch.corrcoef(draw.times.levels.T).sub(torch.eye(4)).abs().max() < 0.06
    assert torch.equal(draw.times.levels[:, 0], run.streams.uniform("time", batch.index))
    assert torch.equal(draw.extra["cleaner"], draw.times.levels.unflatten(1, (2, 2)).amin(dim=1))


def test_video_times_follow_the_paper() -> None:
    """App. A.2: logit-normal, shift 2.95, and 5 % uniform on [0.95, 1]."""
    run = built(modal("video", "time.kind=logit_normal", "time.shift=2.95", "time.late=0.05"))
    t = run.method.draw(run.streams, run.feed.batch(np.arange(20_000))).times.levels[:, 0].double()
    z = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2)
    logistic = torch.sigmoid(z)
    shifted = 2.95 * logistic / (1 + 1.95 * logistic)
    above = (density * (shifted > 0.95)).sum() / density.sum()
    assert (t > 0.95).double().mean().item() == pytest.approx(0.95 * above.item() + 0.05, abs=0.004)
    assert ((t >= 0) & (t <= 1)).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.video_weight=0.0", "data.audio_weight=0.0"], "nothing is left to learn"),
        (
            ["eval.metrics=['fd:i3d']", "data.video_weight=0.0"],
            "expects video, but this run generates spectrograms",
        ),
        (
            ["eval.metrics=['fd:vggish']"],
            "expects recordings, but this run generates videos with spectrograms",
        ),
        (["method.name=full_masking", "time.apart=true"], "gives a sample one time"),
        (["backbone.patch_sound=5"], "patch = 5 does not divide the audio size 16"),
        (["backbone.patch_time=3"], "patch = 3x4x4 does not divide the video size 4x16x16"),
    ],
)
def test_invalid_settings_of_parts_are_rejected(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(modal("joint", *overrides))


def test_settings_of_parts_are_rejected_for_images() -> None:
    from tests.support.runs import tiny

    with pytest.raises(UserError, match="a robot's demonstrations have parts, and digits is image"):
        tiny("data.audio_weight=0.1")
    with pytest.raises(UserError, match="have one part"):
        tiny("time.apart=true")
    with pytest.raises(UserError, match="'video:local' expects video, but this run generates images"):
        tiny("eval.metrics=['fd:video:local']")
    with pytest.raises(UserError, match=r"reads images, and these data are video"):
        modal("video", "method.name=repa", "method.encoder.name=timm:vit_small_patch14_dinov2.lvd142m")
