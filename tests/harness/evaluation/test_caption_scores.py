"""`clip_score`, `clip_score_hessel` and `retrieval` against a small CLIP of open_clip with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.metric_names import metric_spec
from harness.text.captions import open_captions
from metrics.domain.caption_scores import AMONG, clip_score, retrieval
from metrics.intervals import Z
from metrics.value import MetricError
from tests.support.runs import tiny

CPU = torch.device("cpu")
MODEL = "flowrace-tiny-clip"
NETWORK = f"open_clip:{MODEL}"
NAMES = [f"{value}:{NETWORK}" for value in ("clip_score", "clip_score_hessel", "retrieval")]
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TEXT = (
    "data.name=prompts", "backbone.kind=mmdit", "backbone.patch=8", "text.encoder=random:text",
    "text.length=16", "data.held_out=0.1", "eval.labels=balanced", "eval.samples=60",
)  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """Return a small CLIP of open_clip with random weights, and its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, MODEL, CONFIG)
        model, generator = open_clip.create_model(MODEL), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.2 * drawn + (parameter.ndim == 1))
        file = tmp_path_factory.mktemp("clip") / "clip.safetensors"
        save_file({name: x.contiguous() for name, x in model.state_dict().items()}, file)
        yield model.eval(), file


def test_scores_are_those_of_open_clips_model(clip: tuple[Any, Path]) -> None:
    model, file = clip
    spec = tiny(*TEXT, f"eval.metrics={NAMES}", f'eval.weights={{"{NETWORK}"="{file}"}}')
    dataset = open_dataset(spec.data)
    sides, captions = split(dataset, 0.1), open_captions(spec, dataset, CPU)
    assert captions is not None
    found = Evaluator(spec.eval, dataset, sides.train, CPU, sides.held_out, captions=captions)
    place = sides.held_out[:60]
    pixels, texts = images(dataset, place)[0], captions.first_texts(place)
    tokens = open_clip.get_tokenizer(MODEL, context_length=32)(texts)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    with torch.no_grad():
        a = F.normalize(model.encode_image((torch.from_numpy(pixels) / 255 - mean) / std), dim=1)
        b = F.normalize(model.encode_text(tokens), dim=1)
    cosines = (a * b).sum(1).double().numpy()
    measured = {
        metric.name: metric(torch.from_numpy(pixels), found.shapes, torch.from_numpy(place))
        for metric in found.reference_free
    }
    score, hessel, retrieved = (measured[name] for name in NAMES)
    expected = np.maximum(100 * cosines, 0)
    assert score.mean == pytest.approx(expected.mean(), abs=1e-3)
    half = Z * expected.std(ddof=1) / np.sqrt(60)
    assert score.low == pytest.approx(expected.mean() - half, abs=1e-3)
    assert hessel.mean == pytest.approx(score.mean / 40)
    assert 0 <= retrieved.mean <= 1 and retrieved.n == 60
    assert found.noise_floor[NAMES[0]]["held_out"]["mean"] == pytest.approx(score.mean)
    about = found.about["truths"]
    assert isinstance(about, dict) and about[NAMES[0]]["images"] == about[NAMES[0]]["texts"]
    assert found.weights == {NETWORK: about[NAMES[0]]["texts"]}


def test_negative_cosines_count_as_zero() -> None:
    one = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert clip_score(one, np.array([[2.0, 0.0], [-3.0, 0.0]])).mean == 50
    with pytest.raises(MetricError, match="zero or not finite"):
        clip_score(one, np.zeros((2, 2)))


def test_retrieval_is_perfect_for_equal_embeddings_and_chance_for_independent_ones() -> None:
    random = np.random.default_rng(0)
    count = 3000
    a, b = random.normal(size=(2, count, 16))
    names = [str(i) for i in range(count)]
    assert retrieval(a, a, names).mean == 1
    assert retrieval(a, b, names).mean == pytest.approx(1 / AMONG, abs=0.012)
    # Equal captions are never decoys of each other.
    assert retrieval(np.repeat(a, 2, 0), np.repeat(a, 2, 0), [n for n in names for _ in range(2)]).mean == 1
    assert retrieval(a, np.ones_like(a), names).mean == 0
    with pytest.raises(MetricError, match="needs 32 different captions, but there are 31"):
        retrieval(a[:31], a[:31], names[:31])


@pytest.mark.parametrize("name", ["clip_score", "clip_score:local", "retrieval:open_clip:"])
def test_network_without_a_text_tower_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="needs a network with an image and a text tower: write"):
        metric_spec(name)


def test_score_is_refused_without_captions() -> None:
    for data, says in (("prompts", "conditioned on class labels"), ("digits", "needs data of pictures with")):
        with pytest.raises(UserError, match=says):
            tiny(f"data.name={data}", "eval.metrics=['clip_score:open_clip:ViT-B-32']")
