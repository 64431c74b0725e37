"""Exchanged prompts: a network that draws its caption perfectly, one that ignores it, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from harness.cli.main import cli
from harness.data.dataset import Capabilities
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.evaluation import reference_free
from harness.evaluation.obedience import known_cells
from harness.probing import prompts
from harness.probing.prompts import Obedience, SwappedPrompts, changed, swap_prompts
from harness.records.record import Record
from harness.records.record_writer import RecordWriter
from harness.train.trained_run import Drawing, spec_of_run
from metrics.intervals import share
from tests.support.runs import tiny, trained

CPU, PAIRS = torch.device("cpu"), 12
TEXT = (
    "data.name=prompts", "backbone.kind=mmdit", "backbone.patch=8", "backbone.initial=released",
    "text.encoder=random:text", "text.length=16", "data.held_out=0.01", "eval.labels=balanced",
    'eval.metrics=["loss:held_out"]', "eval.samples=12", "eval.batch_size=5", "eval.grid=2", "train.steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tiny(*TEXT), tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read scenes without error: those of the data by their pixels, any other one as empty."""

    def of(dataset, train: bytes) -> SimpleNamespace:
        truth = Capabilities(dataset).truth
        places = {dataset.key(index): index for index in range(len(dataset))}

        def read(pictures: np.ndarray):
            found = [places.get(picture.tobytes()) for picture in pictures]
            cells = known_cells([truth(index or 0) for index in found])
            for part in cells:
                part[[index is None for index in found]] = -1
            return cells

        return SimpleNamespace(read=read, sha256="", accuracy=1.0)

    monkeypatch.setattr(reference_free, "_scene_reader", of)


def swapped(record: Record, monkeypatch: pytest.MonkeyPatch, obedient: bool) -> SwappedPrompts:
    """Measure a network that draws the real picture of its caption, or of its noise's number."""

    def drawn(drawing: Drawing, noise: np.ndarray, shown: np.ndarray) -> Tensor:
        dataset = open_dataset(tiny(*TEXT).data)
        places = drawing.conditions.places(shown if obedient else noise)
        return torch.from_numpy(np.stack([dataset.sample(int(place)).x for place in places]))

    monkeypatch.setattr(prompts, "_drawn", drawn)
    return swap_prompts(record.path, spec_of_run(record.path, ()), None, PAIRS, CPU)


@pytest.mark.slow
def test_perfect_network_obeys_the_prompt_shown_and_the_other_one_as_real_samples_do(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = swapped(record, monkeypatch, obedient=True)
    assert [row.attribute for row in found.obedience] == ["object", "colour", "count", "position", "binding"]
    for row in found.obedience:
        assert row.other == row.real and (row.shown is None or row.shown.mean == 1.0)
    first = found.obedience[0]
    assert first.shown == share(np.ones(PAIRS, bool), PAIRS) and first.other is not None
    assert first.other.mean < 0.5
    # The network ignores its noise.
    assert found.other_noise.differ.mean == found.other_noise.distance.mean == 0.0
    assert found.other_prompt.differ.mean == 1.0


@pytest.mark.slow
def test_network_that_ignores_its_prompt_obeys_the_other_one(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = swapped(record, monkeypatch, obedient=False)
    rows: dict[str, Obedience] = {row.attribute: row for row in found.obedience}
    assert rows["colour"].other is not None and rows["colour"].other.mean == 1.0
    assert rows["colour"].shown is not None and rows["colour"].shown.mean < 0.9
    assert found.other_prompt.differ.mean == 0.0


def test_change_is_the_mean_absolute_difference_of_pairs() -> None:
    first = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    second = first.clone()
    second[0] = 255
    second[1, 0] = 51
    found = changed(first, second)
    assert found.differ == share(np.array([True, True, False]), 3)
    assert found.distance.mean == pytest.approx((1 + 0.2 / 3) / 3) and found.distance.n == 3


@pytest.mark.slow
def test_command_prints_rates_with_intervals_and_changes_nothing(record: Record) -> None:
    before = sorted(record.path.rglob("*"))
    words = ["probe", str(record.path), "--prompts", "--samples", "20"]
    shown = CliRunner().invoke(cli, words, catch_exceptions=False).output
    assert "the prompt shown" in shown and "same prompt, other noise: 1.000 [" in shown
    printed = json.loads(CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False).output)
    # Not more than eval.samples.
    assert (printed["pairs"], printed["step"], len(printed["prompts"])) == (PAIRS, 1, 2)
    assert printed["obeys"]["colour"]["shown"].keys() == {"mean", "low", "high", "n"}
    assert printed["other_noise"]["differ"]["mean"] == 1.0
    assert sorted(record.path.rglob("*")) == before


def test_options_that_exclude_each_other_and_runs_on_labels_are_refused(tmp_path: Path) -> None:
    given = tiny(*TEXT, "data.given=top_half")
    for name, spec in (("labels", tiny()), ("text", tiny(*TEXT)), ("given", given)):
        with RecordWriter(tmp_path / name) as writer:
            writer.write_spec(spec.to_toml())
    for path, words, sentence in (
        ("text", ["--encoder", "local:small"], "--encoder applies to encoders, but --prompts"),
        ("text", ["--time", "0.25"], "--time 0.25 applies to layers, but --prompts measures samples"),
        ("text", ["--control"], "--control and --prompts are mutually exclusive"),
        ("", [], "--prompts applies to one run"),
        ("labels", [], "--prompts needs a run that is conditioned on text"),
        ("given", [], "samples of this run have given tokens"),
    ):
        result = CliRunner().invoke(cli, ["probe", str(tmp_path / path), "--prompts", *words])
        assert isinstance(result.exception, UserError) and sentence in str(result.exception)
