"""`obeys:*`: scenes against captions parsed word by word, the reader's oracle and floor, a run's record."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.config.data_spec import DataSpec
from harness.data.generated.prompts import COLOURS, NUMBERS, SIZES, Prompts
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation import generated_side, reference_free
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.metric_table import REFERENCE_FREE
from harness.evaluation.obedience import known_cells, wanted_scene
from harness.text.captions import open_captions
from metrics.domain.geneval import TASKS, geneval
from metrics.domain.obedience import EMPTY, KINDS, Attributes, Wanted, obedience, scene_reader
from metrics.intervals import share
from metrics.value import MetricError
from tests.support.runs import tiny, trained

CPU = torch.device("cpu")
NAMES = [f"obeys:{kind}" for kind in (*KINDS, *TASKS)]
TEXT = (
    "data.name=prompts", "backbone.kind=mmdit", "backbone.patch=8", "backbone.initial=released",
    "text.encoder=random:text", "text.length=16", "data.held_out=0.1", "eval.labels=balanced",
    f"eval.metrics={NAMES}", "eval.samples=60", "eval.batch_size=25",
)  # fmt: skip
WORDS = {"a": 1, "two": 2, "three": 3}
PLACES = {
    "top left": {0}, "top right": {1}, "bottom left": {2}, "bottom right": {3},
    "top": {0, 1}, "bottom": {2, 3}, "left": {0, 2}, "right": {1, 3},
}  # fmt: skip
SIDES = {"left of": ("left", "right"), "right of": ("right", "left"), "above": ("top", "bottom")}
SIDES["below"] = ("bottom", "top")


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    dataset = open_dataset(DataSpec(name="prompts"))
    assert isinstance(dataset, Prompts)
    return dataset


def parsed(caption: str) -> tuple[Wanted, ...]:
    """Return what a caption asks for, by reading its words."""
    relation = next((words for words in SIDES if f" {words} " in caption), "")
    phrases = caption.split(f" {relation} ") if relation else [caption]
    found = []
    for phrase, side in zip(phrases, SIDES.get(relation, ("",)), strict=True):
        match = re.fullmatch(r"(\w+) (\w+) (\w+) (\w+?)(?:e?s)?(?: (?:in|on|at) the (.+))?", phrase)
        assert match, phrase
        count, size, colour, noun, place = match.groups()
        number = next(i for i, name in enumerate(NUMBERS) if name == noun or name[:-1] == noun)
        cells = PLACES.get(side or place or "", set())
        indices = number, list(COLOURS).index(colour), list(SIZES).index(size)
        found.append(Wanted(*indices, WORDS[count], frozenset(cells)))
    return tuple(found)


def test_wanted_scene_is_what_the_words_of_the_caption_ask_for(prompts: Prompts) -> None:
    for index in range(400):
        assert wanted_scene(prompts.truth(index)) == parsed(prompts.captions(index)[0])


def test_known_cells_are_the_pixels_that_are_not_black(prompts: Prompts) -> None:
    shown = known_cells([prompts.truth(index) for index in range(200)])
    for index in range(200):
        cells = prompts.sample(index).x.reshape(3, 2, 16, 2, 16).max(axis=(0, 2, 4)).flatten()
        assert ((cells > 0) == (shown.kind[index] != EMPTY)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_true_scene_obeys_its_caption(prompts: Prompts, kind: str) -> None:
    truths = [prompts.truth(index) for index in range(len(prompts))]
    shown, captions = known_cells(truths), [wanted_scene(truth) for truth in truths]
    value = obedience(kind, shown, captions)
    one_group = sum(len(caption) == 1 for caption in captions)
    unplaced = sum(len(caption) == 1 and caption[0].count == 3 for caption in captions)
    stated = {"position": len(truths) - unplaced, "binding": value.n}.get(kind, len(truths))
    assert value.mean == 1 and value.n == stated
    assert kind != "binding" or 0 < value.n < len(truths) - one_group
    assert obedience(kind, shown, captions[1:] + captions[:1]).mean < 0.35


@pytest.mark.parametrize("task", TASKS)
def test_every_true_scene_fulfils_its_task(prompts: Prompts, task: str) -> None:
    truths = [prompts.truth(index) for index in range(len(prompts))]
    shown, captions = known_cells(truths), [wanted_scene(truth) for truth in truths]
    value = geneval(task, shown, captions)
    assert value.mean == 1 and 500 < value.n < len(prompts)
    assert geneval(task, shown, captions[1:] + captions[:1]).mean < 0.35


def scene(*cells: tuple[int, int, int] | None) -> Attributes:
    rows = np.array([cell or (EMPTY,) * 3 for cell in cells])
    return Attributes(*(rows[None, :, i] for i in range(3)))


RED_SEVEN_LEFT_OF_TWO_BLUE_ONES = (
    Wanted(7, 0, 0, 1, frozenset({0, 2})),
    Wanted(1, 2, 1, 2, frozenset({1, 3})),
)


@pytest.mark.parametrize(
    ("shown", "obeyed"),
    [
        (scene((7, 0, 0), (1, 2, 1), None, (1, 2, 1)), set(KINDS)),
        # Colours swapped.
        (scene((7, 2, 0), (1, 0, 1), None, (1, 0, 1)), {"object", "colour", "count"}),
        # Places swapped.
        (scene((1, 2, 1), (7, 0, 0), (1, 2, 1), None), {"object", "colour", "count", "binding"}),
        # One too few.
        (scene((7, 0, 0), (1, 2, 1), None, None), set(KINDS) - {"count"}),
        # Another digit in place of the seven.
        (scene((8, 0, 0), (1, 2, 1), None, (1, 2, 1)), {"colour", "count", "position"}),
        (scene(None, None, None, None), set()),
    ],
)
def test_each_kind_judges_its_own_attribute(shown: Attributes, obeyed: set[str]) -> None:
    caption = [RED_SEVEN_LEFT_OF_TWO_BLUE_ONES]
    assert {kind for kind in KINDS if obedience(kind, shown, caption).mean == 1} == obeyed


def test_interval_is_wilsons_over_the_captions_that_state_the_attribute() -> None:
    single = (Wanted(7, 0, 0, 1, frozenset({0})),)
    empty = scene(None, None, None, None)
    both = Attributes(*(np.concatenate([part, part]) for part in empty))
    value = obedience("binding", both, [single, RED_SEVEN_LEFT_OF_TWO_BLUE_ONES])
    assert value == share(np.array([False]), 1)
    with pytest.raises(MetricError, match="no caption states the attribute 'binding'"):
        obedience("binding", empty, [single])


@pytest.mark.usefixtures("quick_networks")
def test_record_has_values_with_their_n_and_both_floors(tmp_path_factory: pytest.TempPathFactory) -> None:
    record = trained(tiny(*TEXT, "train.steps=2", "eval.every=2"), tmp_path_factory.mktemp("run"))
    (event,) = record.of("eval")
    assert event["metrics"].keys() == set(NAMES) and "errors" not in event
    rows = event["metrics"]
    assert (
        rows["obeys:object"]["n"] == 60 and 0 < rows["obeys:binding"]["n"] < rows["obeys:position"]["n"] < 60
    )
    evaluated = record.environment[0]["evaluation"]
    for name in NAMES:
        floor = evaluated["floor"][name]
        assert floor.keys() == {"held_out", "spoilt"} and floor["held_out"]["n"] == rows[name]["n"]
        assert evaluated["protocol"]["truths"][name].keys() == {"sha256", "accuracy"}


def test_generated_pictures_are_compared_with_their_own_captions(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that draws the real picture of each caption obeys it, if the reader makes no error."""
    spec, dataset = tiny(*TEXT), prompts
    known = {prompts.key(index): prompts.truth(index) for index in range(len(prompts))}
    perfect = SimpleNamespace(
        read=lambda pictures: known_cells([known[picture.tobytes()] for picture in pictures]),
        sha256="perfect",
        accuracy=1.0,
    )
    monkeypatch.setattr(reference_free, "_scene_reader", lambda *_: perfect)
    sides, captions = split(dataset, 0.1), open_captions(spec, dataset, CPU)
    found = Evaluator(spec.eval, dataset, sides.train, CPU, sides.held_out, captions=captions)

    def real(model, sampling, index, y):
        pixels = images(dataset, sides.held_out[index])[0]
        return torch.from_numpy(pixels) / 127.5 - 1

    monkeypatch.setattr(generated_side, "draw", real)
    result = found(torch.nn.Identity())
    assert result is not None
    for name in NAMES:
        floor = found.noise_floor[name]
        assert result.metrics[name].mean == floor["held_out"]["mean"] == 1 > 2 * floor["spoilt"]["mean"]


def test_obedience_is_refused_without_captions_as_conditions() -> None:
    with pytest.raises(UserError, match="compares samples with their captions, but this run is conditioned"):
        tiny("data.name=prompts", "eval.metrics=['obeys:count']")
    assert set(NAMES) < set(REFERENCE_FREE)


@pytest.mark.slow
def test_trained_reader_separates_oracle_from_shuffled_captions(prompts: Prompts) -> None:
    sides = split(prompts, 0.1)
    truths = known_cells([prompts.truth(int(index)) for index in sides.train])
    reader = scene_reader(images(prompts, sides.train)[0], truths, 16)
    shown = reader.read(images(prompts, sides.held_out)[0])
    captions = [wanted_scene(prompts.truth(int(index))) for index in sides.held_out]
    for kind in KINDS:
        assert obedience(kind, shown, captions).mean > 0.8
        assert obedience(kind, shown, captions[1:] + captions[:1]).mean < 0.35
