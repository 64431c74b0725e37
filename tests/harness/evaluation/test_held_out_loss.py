"""`loss:held_out` against a plain loop in float64, on labels, texts and parts; its record and its cost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from harness.assembly.resolve import load_spec
from harness.backbone.times import Times
from harness.cli.main import cli
from harness.config.spec import RunSpec
from harness.costs.estimate import evaluation_flops
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.held_out_loss import EXTRA_TOKEN, TIMES
from harness.evaluation.metric_names import OVER_ANY
from harness.evaluation.metric_table import CAPTION_SCORES, REFERENCE_FREE
from harness.runtime.random_streams import Streams
from harness.text.captions import open_captions
from metrics.intervals import Z
from metrics.suite import RESERVED
from tests.support.modal import built, modal
from tests.support.runs import tiny, trained

CPU = torch.device("cpu")
LOSS = "loss:held_out"
ONLY = (f"eval.metrics=['{LOSS}']", "eval.samples=7", "eval.batch_size=3", "eval.grid=2", "data.held_out=0.1")
TEXT = (
    "data.name=prompts", "backbone.kind=mmdit", "backbone.patch=8", "backbone.initial=released",
    "text.encoder=random:text", "text.length=16",
)  # fmt: skip
SPECS = {
    "labels": lambda: tiny(*ONLY),
    "texts": lambda: tiny(*TEXT, *ONLY),
    "parts": lambda: modal("joint", *ONLY),
}


class Counted(torch.nn.Module):
    """A network that counts the samples of its passes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.passes = network, 0

    def forward(self, x, times, y):
        self.passes += len(x)
        return self.network(x, times, y)


def perturbed(spec: RunSpec) -> torch.nn.Module:
    """Return the network of a run with random weights, whose output depends on every input."""
    model, generator = built(spec).model, torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


class Plain(torch.nn.Module):
    """A network that is a function of x alone, and records what it is given."""

    def __init__(self, function: Callable[[Tensor], Tensor], extra: int = 0) -> None:
        super().__init__()
        self.function, self.levels, self.config = function, set(), SimpleNamespace(extra=extra)

    def forward(self, x, times, y):
        self.levels |= set(times.levels.flatten().tolist())
        return SimpleNamespace(velocity=self.function(x))


def evaluator(spec: RunSpec) -> Evaluator:
    dataset = open_dataset(spec.data)
    sides = split(dataset, spec.data.held_out)
    captions = open_captions(spec, dataset, CPU)
    return Evaluator(spec.eval, dataset, sides.train, CPU, sides.held_out, captions=captions)


def plain(spec: RunSpec, model: torch.nn.Module) -> np.ndarray:
    """Return the loss of each sample, time and value of x, in float64, one sample and one time at a time."""
    dataset = open_dataset(spec.data)
    captions, rows = open_captions(spec, dataset, CPU), []
    for place in split(dataset, spec.data.held_out).held_out[: spec.eval.samples]:
        pixels, label = dataset.sample(int(place))
        x0 = torch.from_numpy(pixels).double() / 127.5 - 1
        noise = Streams(spec.eval.seed).normal("held_out_noise", [int(place)], x0.shape)[0].double()
        y = torch.tensor([label]) if captions is None else captions.first(np.array([place]))
        at_times = []
        for k in range(8):
            t = k / 8
            x_t = ((1 - t) * x0 + t * noise).float()[None]
            with torch.no_grad():
                v = model(x_t, Times.per_sample(torch.tensor([t])), y).velocity[0].double()
            at_times.append(((v - (noise - x0)) ** 2).flatten().numpy())
        rows.append(at_times)
    return np.array(rows)


def stated_by(texts: list[str], losses: np.ndarray) -> dict[str, np.ndarray]:
    """Return the losses by what the texts state, counted in their words."""
    number = {"a": 1, "two": 2, "three": 3}
    # A group begins with its number and its size: `two large blue ones`.
    digits = np.array(
        [sum(map(number.get, re.findall(r"\b(a|two|three) (?:small|large)", t))) for t in texts]
    )
    rows = {name: digits == n for n, name in enumerate(("one_digit", "two_digits", "three_digits"), 1)}
    rows |= {
        phrase.replace(" ", "_"): np.array([f" {phrase} " in text for text in texts])
        for phrase in ("left of", "right of", "above", "below")
    }
    return {f"{LOSS}/{name}": losses[own] for name, own in rows.items() if own.any()}


@pytest.mark.parametrize("kind", SPECS)
def test_held_out_loss_is_that_of_a_plain_loop(kind: str) -> None:
    spec = SPECS[kind]()
    model = perturbed(spec)
    result = evaluator(spec)(model)
    assert result is not None and not result.errors
    squares = plain(spec, model)
    if kind == "parts":
        dataset = open_dataset(spec.data)
        of_video = int(np.prod(dataset.shape))
        video, sound = squares[:, :, :of_video].mean(2), squares[:, :, of_video:].mean(2)
        by_time = (video + sound) / 2
        named = {f"{LOSS}/video": video.mean(1), f"{LOSS}/audio": sound.mean(1)}
    else:
        by_time, named = squares.mean(2), {}
    if kind == "texts":
        dataset, captions = open_dataset(spec.data), open_captions(spec, open_dataset(spec.data), CPU)
        place = split(dataset, spec.data.held_out).held_out[: spec.eval.samples]
        words = np.array([len(text.split()) for text in captions.first_texts(place)])
        longer, losses = words > np.median(words), by_time.mean(1)
        assert 0 < longer.sum() < len(words)
        named |= {f"{LOSS}/short_captions": losses[~longer], f"{LOSS}/long_captions": losses[longer]}
        named |= stated_by(captions.first_texts(place), losses)
    named |= {LOSS: by_time.mean(1)} | {f"{LOSS}@{k / 8:g}": by_time[:, k] for k in range(8)}
    assert result.metrics.keys() == named.keys() and next(iter(result.metrics)) == LOSS
    for name, losses in named.items():
        found = result.metrics[name]
        if len(losses) == 1:
            assert (found.mean, found.low, found.n) == (pytest.approx(losses[0], rel=2e-6), None, 1)
            continue
        half = Z * losses.std(ddof=1) / np.sqrt(len(losses))
        assert found.mean == pytest.approx(losses.mean(), rel=2e-6), name
        assert (found.low, found.high) == pytest.approx(
            (losses.mean() - half, losses.mean() + half), rel=1e-5
        )
        assert found.n == len(losses) and found.row().keys() == {"mean", "low", "high", "n"}


def test_network_that_predicts_nothing_has_the_closed_form_at_time_0() -> None:
    """At t = 0, which is data in MLPerf's convention and ours, the target is eps - x0 for any network."""
    spec = tiny(*ONLY, "eval.samples=150")
    network, losses = Plain(torch.zeros_like), evaluator(spec).held_out_loss
    assert losses is not None
    values = losses(network)
    dataset = open_dataset(spec.data)
    x0 = np.stack([dataset.sample(int(i)).x for i in losses.place]) / 127.5 - 1
    expected = 1 + np.mean(x0**2)
    assert len(losses.place) == 150 and values[LOSS].mean == pytest.approx(expected, rel=0.03)
    assert network.levels == set(TIMES)


def test_only_the_grid_is_drawn_when_nothing_else_is_measured() -> None:
    spec = tiny(*ONLY)
    model = Counted(perturbed(spec))
    result = evaluator(spec)(model)
    # Heun with two steps takes three passes.
    assert result is not None and model.passes == 8 * 7 + 3 * 2
    once = spec.model_copy(update={"train": spec.train.model_copy(update={"steps": 6})})
    one_pass = evaluation_flops(tiny("train.steps=6", "eval.samples=2")) // (3 * 2)
    assert evaluation_flops(once) == model.passes * one_pass


def test_cost_adds_the_passes_of_the_loss_to_those_of_sampling() -> None:
    sampled, both = (
        tiny(*ONLY, f"eval.metrics={names}", "eval.samples=400")
        for names in (["fd:local"], ["fd:local", LOSS])
    )
    held_out = round(0.1 * 1797)
    ratio = evaluation_flops(both) / evaluation_flops(sampled)
    assert ratio == pytest.approx((3 * 400 + 8 * held_out) / (3 * 400))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_later_evaluation_has_the_value_of_the_run(tmp_path: Path) -> None:
    """Replicates repeat the samples, not the loss, and guidance does not change it."""
    words = (
        "train.steps=6",
        "eval.samples=30",
        "data.held_out=0.1",
        "eval.guidance=2.0",
        "eval.replicates=2",
    )
    during = trained(tiny(*words, f"eval.metrics=['fd:local', '{LOSS}']"), tmp_path / "during")
    later = trained(tiny(*words), tmp_path / "later")
    command = ["eval", str(later.path), "--metrics", LOSS, "--json"]
    printed = CliRunner().invoke(cli, command, catch_exceptions=False)
    (event,) = during.of("eval")
    losses = {name: row for name, row in event["metrics"].items() if name.startswith(LOSS)}
    assert len(losses) == 9 and losses[LOSS]["n"] == 30
    assert event["metrics"]["fd:local"].keys() >= {"replicates"} and "replicates" not in losses[LOSS]
    found = json.loads(printed.stdout)
    (row,) = found if isinstance(found, list) else [found]
    assert row["metrics"] == losses


def test_value_is_comparable_under_a_protocol_of_its_own_samples() -> None:
    spec, other = tiny(*ONLY), tiny(*ONLY, "eval.samples=6")
    first, second = evaluator(spec), evaluator(other)
    about, others = (found.about["truths"] for found in (first, second))
    assert isinstance(about, dict) and isinstance(others, dict)
    assert about[LOSS]["times"] == list(TIMES) and about[LOSS]["samples"] == 7
    assert about[LOSS]["index"] != others[LOSS]["index"] and first.protocol != second.protocol


def test_loss_of_a_network_with_an_extra_token_is_refused_with_the_reason() -> None:
    spec = tiny(*ONLY)
    model = Plain(torch.zeros_like, extra=4)
    assert evaluator(spec)._unsampled(model) == ({}, {LOSS: EXTRA_TOKEN})


def test_infinite_loss_is_no_value() -> None:
    network = Plain(lambda x: x * torch.inf)
    assert evaluator(tiny(*ONLY))._unsampled(network) == ({}, {LOSS: "the loss is not finite"})


def test_loss_without_held_out_samples_is_refused_before_the_data_are_read() -> None:
    with pytest.raises(UserError, match=r"'loss:held_out' needs held-out samples.*raise data.held_out"):
        load_spec("digits", [f"eval.metrics=['{LOSS}']", "data.held_out=0"])
    spec = tiny(*ONLY)
    dataset = open_dataset(spec.data)
    with pytest.raises(UserError, match="needs held-out samples"):
        Evaluator(spec.eval, dataset, np.arange(9), CPU)


def test_list_names_every_metric_and_its_direction() -> None:
    output = CliRunner().invoke(cli, ["list", "metrics", "--json"], catch_exceptions=False).output
    rows = json.loads(output)["metrics"]
    assert "lower is better" in rows[LOSS]
    over_any = {f"{value}:<extractor>" for value in OVER_ANY}
    scores = {f"{value}:open_clip:<model>" for value in CAPTION_SCORES}
    assert rows.keys() == {*over_any, *RESERVED, *REFERENCE_FREE, *scores, LOSS, "success@<task>"}


def test_method_whose_extra_token_needs_an_encoder_is_refused_before_the_run() -> None:
    words = ("method.name=reg", "method.encoder.name=random:small", 'eval.metrics=["loss:held_out"]')
    with pytest.raises(UserError, match="loss:held_out' does not support reg"):
        tiny(*words)
