"""Captions as conditions: pure functions of the global index in training, held-out captions in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.assembly.resolve import load_spec
from harness.backbone.condition import Text
from harness.config.evaluation_spec import EvalSpec
from harness.data.dataset import Sample
from harness.data.feed import Feed
from harness.data.open import split
from harness.errors import UserError
from harness.evaluation.conditions import LabelConditions, conditions_of
from harness.flow.sampling import sample_labels
from harness.runtime.random_streams import Streams
from harness.text.captions import (
    CaptionConditions,
    PromptConditions,
    RunCaptions,
    one_of,
    open_captions,
    shortened,
)
from harness.train.state import build_run
from tests.harness.data.pictures import opened
from tests.harness.text.counting import Counting

TRAIN, HELD_OUT = np.arange(8), np.arange(8, 12)


class Captioned:
    """Twelve grey samples, of which the third has no caption and the fourth an empty one."""

    modality, reads, classes, shape, fingerprint = "image", (), 3, (1, 2, 2), "captioned"

    def __len__(self) -> int:
        return 12

    def sample(self, index: int) -> Sample:
        return Sample(np.full(self.shape, index, np.uint8), index % 3)

    def key(self, index: int) -> bytes:
        return bytes([index])

    def captions(self, index: int) -> tuple[str, ...]:
        special = {2: (), 3: ("",), 9: ()}
        return special.get(index, tuple(f"sample {index} in words {k}" for k in range(1 + index % 3)))


@pytest.fixture
def captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunCaptions:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path))
    return RunCaptions(Counting(), Captioned())


def fed(captions: RunCaptions | None, drop: float = 0.0, seed: int = 0) -> Feed:
    return Feed(Captioned(), TRAIN, Streams(seed), label_drop=drop, flip=False, captions=captions)


def features(captions: RunCaptions, texts: list[str]) -> torch.Tensor:
    return captions.encoder.encode(texts).features


def test_sample_shows_the_caption_that_its_stream_chooses(captions: RunCaptions) -> None:
    index = np.arange(200)
    batch = fed(captions).batch(index)
    assert isinstance(batch.y, Text) and batch.place is not None
    draws = Streams(0).uniform("caption", index).tolist()
    shown = [one_of(captions.of_samples(int(p)), u) for p, u in zip(batch.place, draws, strict=True)]
    assert torch.equal(batch.y.features, features(captions, shown))
    # A sample shows each of its captions in some epoch.
    assert {text for text in shown if text.startswith("sample 5")} == set(captions.of_samples(5))
    assert torch.equal(batch.label, fed(None).batch(index).label)
    assert torch.equal(batch.x0, fed(None).batch(index).x0)


def test_conditions_do_not_depend_on_the_division_into_batches(captions: RunCaptions) -> None:
    feed = fed(captions, drop=0.3)
    together = feed.batch(np.arange(24)).y
    parts = [feed.batch(np.arange(start, start + 6)).y for start in range(0, 24, 6)]
    assert torch.equal(together.features, torch.cat([part.features for part in parts]))


def test_dropped_captions_are_the_empty_one_for_the_samples_that_lose_labels(captions: RunCaptions) -> None:
    index = np.arange(64)
    batch, labelled = fed(captions, drop=0.4).batch(index), fed(None, drop=0.4).batch(index)
    dropped = labelled.y == Captioned.classes
    assert 10 < dropped.sum() < 50
    kept = fed(captions).batch(index).y
    assert torch.equal(batch.y.features[dropped], captions.empty.features.expand(int(dropped.sum()), -1, -1))
    assert torch.equal(batch.y.features[~dropped], kept.features[~dropped])
    nothing = fed(captions, drop=1.0).batch(index).y
    assert torch.equal(nothing.features, captions.empty.expand(64).features)


def test_sample_without_captions_shows_the_empty_one(captions: RunCaptions) -> None:
    text = captions.chosen(np.array([2, 3]), torch.zeros(2))
    assert torch.equal(text.features, captions.empty.expand(2).features)
    assert captions.with_captions(np.arange(12)).tolist() == [0, 1, 4, 5, 6, 7, 8, 10, 11]


def test_evaluation_shows_first_captions_of_held_out_samples(captions: RunCaptions) -> None:
    index = np.arange(10)
    found = conditions_of(EvalSpec(labels="balanced"), 3, captions, HELD_OUT, TRAIN)
    assert isinstance(found, CaptionConditions)
    places = [[8, 10, 11][i % 3] for i in index]
    texts = [captions.of_samples(place)[0] for place in places]
    assert found.texts(index) == texts
    assert torch.equal(found.condition(index).features, features(captions, texts))
    assert found.labels(index).tolist() == [place % 3 for place in places]
    assert isinstance(found.null, Text) and torch.equal(found.null.features, captions.empty.features)
    drawn = conditions_of(EvalSpec(labels="random"), 3, captions, HELD_OUT, TRAIN)
    chosen = Streams(0).integers("eval_caption", index, 3)
    assert drawn.texts(index) == [captions.of_samples([8, 10, 11][i])[0] for i in chosen.tolist()]
    assert drawn.texts(index[4:]) == drawn.texts(index)[4:]


def test_evaluation_without_held_out_captions_shows_those_of_training(captions: RunCaptions) -> None:
    for held_out in (None, np.empty(0, np.int64), np.array([9])):
        found = CaptionConditions(captions, EvalSpec(labels="balanced"), held_out, TRAIN)
        assert found.side == "training" and found.texts(np.arange(2))[1] == captions.of_samples(1)[0]
    other = CaptionConditions(captions, EvalSpec(labels="balanced"), HELD_OUT, TRAIN)
    assert other.about() != found.about()


def test_label_conditions_are_those_of_earlier_versions() -> None:
    spec, index = EvalSpec(), np.arange(50)
    found = conditions_of(spec, 7, None, HELD_OUT, TRAIN)
    assert torch.equal(found.labels(index), sample_labels(spec, Streams(0), index, 7))
    assert torch.equal(found.condition(index), found.labels(index))
    assert found.null == 7 and found.about() == {} and found.texts(index) == []
    assert set(LabelConditions(spec, 7, (2, 5)).labels(index).tolist()) == {2, 5}


def test_prompts_take_turns() -> None:
    encoder, index = Counting(), np.arange(5)
    found = PromptConditions(encoder, ["a red one", "家"])
    assert found.texts(index) == ["a red one", "家", "a red one", "家", "a red one"]
    assert torch.equal(found.condition(index).features, encoder.encode(found.texts(index)).features)
    assert torch.equal(found.null.features, encoder.encode([""]).features)
    assert found.about() != PromptConditions(encoder, ["a red one", "家 "]).about()


def test_record_counts_captions_and_the_first_cut_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path))
    notes: list[str] = []
    encoder = Counting()
    found = RunCaptions(encoder, Captioned(), notes.append).about()
    texts = [text for i in range(12) for text in Captioned().captions(i)]
    assert (found["captions"], found["distinct"]) == (len(texts), len(set(texts)))
    assert found["cut"] == len(texts) - 1 and found["sha256"] == encoder.sha256
    assert any(
        "have more than 4 tokens and are cut (text.length); the first is 'sample 0" in n for n in notes
    )
    assert shortened("x" * 100) == "x" * 60 + "..."


@pytest.mark.parametrize("none", [(), ("",)])
def test_data_whose_samples_have_no_caption_are_rejected(
    none: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path))
    monkeypatch.setattr(Captioned, "captions", lambda self, index: none)
    with pytest.raises(UserError, match=r"has a caption with text; check data\.caption_key"):
        RunCaptions(Counting(), Captioned())
    with pytest.raises(UserError, match=r"needs captions, which this data set does not have"):
        RunCaptions(Counting(), opened("digits", ""))


@pytest.mark.slow
def test_captions_of_the_prompts_are_found_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path))
    spec = load_spec("digits", SET)
    data = opened("prompts", "")
    first, again = (open_captions(spec, data, torch.device("cpu")) for _ in range(2))
    assert first is not None and again is not None
    assert first.added.new == first.added.distinct > 5000 and again.added.new == 0
    sides = split(data, 0.1)
    place = sides.train[:32]
    shown = first.chosen(place, torch.full((32,), 0.99))
    last = [data.captions(int(index))[-1] for index in place]
    torch.testing.assert_close(shown.features, first.encoder.encode(last).features, atol=1e-6, rtol=0)
    assert torch.equal(shown.features, again.chosen(place, torch.full((32,), 0.99)).features)
    assert open_captions(load_spec("digits"), data, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("settings", "has_them"),
    [
        pytest.param(["method.name=flow"], False, marks=pytest.mark.slow),
        (["method.name=attention_separation"], True),
        pytest.param(
            ["method.name=attention_separation", "method.teacher_labels=shared"],
            False,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["flow", "undropped teacher", "shared"],
)
def test_texts_before_drop_are_in_batches_of_methods_that_need_them(
    settings: list[str], has_them: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A released teacher is conditioned on samples whose caption the student has lost."""
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path))
    spec = load_spec("digits", [*SET, "backbone.size=pico", "backbone.patch=4", *settings])
    data, device = opened("prompts", ""), torch.device("cpu")
    found = open_captions(spec, data, device)
    run = build_run(spec, data, split(data, 0.1), device, captions=found)
    assert found is not None
    batch = run.feed.batch(np.arange(60))
    lost = [torch.equal(features, found.empty.features[0]) for features in batch.y.features]
    assert 0 < sum(lost) < 20
    assert (batch.given is not None) == has_them
    if batch.given is not None:
        changed = (batch.given.features != batch.y.features).flatten(1).any(dim=1)
        assert changed.tolist() == lost
    few = run.feed.batch(np.arange(4))
    assert run.method.loss(run.student, few, run.method.draw(run.streams, few)).total.isfinite()


# ---- spec ----

SET = ["data.name=prompts", "backbone.kind=mmdit", "text.encoder=random:text", "text.length=16"]


@pytest.mark.parametrize(
    "other",
    ["text.encoder=local:text", "text.length=17", "text.layer=1", "text.pooled=true",
     "text.padding=attended", "text.sha256=ab"],
)  # fmt: skip
def test_text_that_changes_features_changes_the_run_id(other: str) -> None:
    assert load_spec("digits", [*SET, other]).id != load_spec("digits", SET).id


def test_place_of_the_weights_does_not_change_the_run_id() -> None:
    spec = load_spec("digits", SET)
    for other in ("text.weights=elsewhere", "text.download=true"):
        assert load_spec("digits", [*SET, other]).id == spec.id
    assert spec.data.caption_key == ""


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["text.length=5"], r"text\.length = 5 belongs to a text encoder; set text\.encoder"),
        (["text.pooled=true"], r"text\.pooled = True belongs to a text encoder"),
        (["text.encodr=minilm"], r"unknown key 'text\.encodr'.*Did you mean 'text\.encoder'"),
        (["backbone.kind=mmdit", "text.encoder=minilm"], r"data set 'digits' has none; choose data\.name"),
        (["text.padding=both"], r"text\.padding = \"both\": .*'masked' or 'attended'"),
        (["data.caption_key=text"], r"data set 'digits' has no such field"),
    ],
)
def test_mistake_in_the_spec_is_one_sentence(overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_spec("digits", overrides)


def test_content_of_a_folder_of_weights_is_pinned(tmp_path: Path) -> None:
    from harness.data.pin import pinned

    def spec(**folders: Any) -> Any:
        return pinned(load_spec("digits", [*SET, *(f"text.{k}={v}" for k, v in folders.items())]))

    ids = []
    for number, name in enumerate("aba"):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(name)
        (folder / "README.md").write_text(str(number))
        ids.append(spec(weights=folder).id)
    assert ids[0] == ids[2] != ids[1] and spec().id not in ids
    # A network that is named by its folder is pinned too.
    named = f"transformers:{tmp_path / '0'}"
    assert spec(encoder=named).text.content == spec(weights=tmp_path / "0").text.content
    with pytest.raises(UserError, match=r"holds other weights than this spec was planned with"):
        spec(weights=tmp_path / "0", content="ab")
