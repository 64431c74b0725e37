"""`cer` of words that are spelled in prompts: a generated word is compared with the one in its caption."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.spec import RunSpec
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation import generated_side, reference_free
from harness.evaluation.evaluator import Evaluator
from harness.text.captions import open_captions
from tests.harness.data.pictures import opened
from tests.support.runs import tiny, trained

CPU = torch.device("cpu")
TEXT = (
    "data.name=words", "data.held_out=0.1", "backbone.kind=mmdit", "backbone.patch=8",
    "backbone.initial=released", "text.encoder=random:text", "text.length=16", "eval.labels=balanced",
    "eval.metrics=['cer:reader']",
)  # fmt: skip


def text_spec(*overrides: str) -> RunSpec:
    return tiny(*TEXT, *overrides)


def spelled(caption: str) -> str:
    match = re.search('"([a-z]+)"', caption)
    assert match, caption
    return match[1]


def test_every_caption_spells_the_word_of_its_image() -> None:
    data, plain = opened("words", "", caption_key="usual"), opened("words", "")
    captions = [data.captions(index) for index in range(len(data))]
    for index, texts in enumerate(captions):
        assert {spelled(text) for text in texts} == {data.text(index)}
    assert {len(texts) for texts in captions} == {1, 2, 3}
    assert not hasattr(plain, "captions") and plain.fingerprint == "198c47c78bb3cd54" != data.fingerprint
    with pytest.raises(UserError, match=r"data\.caption_key = title: the captions of words are generated"):
        opened("words", "", caption_key="title")


def test_generated_words_are_compared_with_those_that_their_captions_spell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network that writes the word of each caption has no error, if the reader makes none."""
    spec = text_spec("eval.samples=50")
    data = open_dataset(spec.data)
    sides = split(data, 0.1)
    written = {data.sample(int(i)).x.tobytes(): data.text(int(i)) for i in sides.held_out}

    def read(pictures: np.ndarray) -> list[str]:
        return [written[picture.tobytes()] for picture in pictures]

    monkeypatch.setattr(reference_free, "_reader", lambda _: (read, {}))
    captions = open_captions(spec, data, CPU)
    found = Evaluator(spec.eval, data, sides.train, CPU, sides.held_out, captions=captions)
    shown = found.conditions.texts(np.arange(50))

    def real(model, sampling, index, y):
        words = [spelled(shown[i]) for i in index]
        places = [next(i for i in sides.held_out if data.text(int(i)) == word) for word in words]
        return torch.from_numpy(images(data, np.array(places))[0]) / 127.5 - 1

    monkeypatch.setattr(generated_side, "draw", real)
    result = found(torch.nn.Identity())
    assert result is not None and len(set(shown)) > 10
    assert result.metrics["cer:reader"].mean == 0 < found.noise_floor["cer:reader"]["spoilt"]["mean"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_run_on_spelled_words_records_the_error_rate(tmp_path: Path) -> None:
    (event,) = trained(text_spec("train.steps=2", "eval.every=2"), tmp_path).of("eval")
    assert event["metrics"]["cer:reader"]["n"] == 24 and "errors" not in event
