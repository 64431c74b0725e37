"""`obeys:*` on video with sound: facts against detected events, oracle and floor, and the record of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from harness.backbone.tokens import split_parts
from harness.cli.sample import sample as sample_command
from harness.config.spec import RunSpec
from harness.data.dataset import shapes_of, x_shape
from harness.data.generated.bounce import Bounce
from harness.data.log_mel import PER_FRAME
from harness.data.open import images, open_dataset, split
from harness.errors import UserError
from harness.evaluation import clip_obedience as module
from harness.evaluation import generated_side
from harness.evaluation.clip_obedience import ClipReaders, frames_of_part, known_facts
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.metric_table import REFERENCE_FREE
from harness.evaluation.reference_free import prepared
from harness.records.record import Record
from harness.text.captions import open_captions
from metrics.domain.audio_video_sync import clicks, impacts
from metrics.domain.clip_obedience import KINDS, UNKNOWN, Facts, clip_obedience
from tests.support.modal import modal
from tests.support.runs import trained

CPU = torch.device("cpu")
NAMES = [f"obeys:{kind}{part}" for kind in KINDS for part in ("", "/video", "/audio")]
TEXT = (
    "backbone.kind=mmdit", "backbone.initial=released", "text.encoder=random:text", "text.length=16",
    "data.frames=8", "eval.labels=balanced",
)  # fmt: skip


def text_spec(*overrides: str) -> RunSpec:
    return modal("joint", *TEXT, f"eval.metrics={['loss:held_out', 'sync', *NAMES]}", *overrides)


@pytest.fixture(scope="module")
def data() -> Bounce:
    dataset = open_dataset(text_spec().data)
    assert isinstance(dataset, Bounce)
    return dataset


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory, quick_networks: None) -> Record:
    spec = text_spec("train.steps=2", "train.checkpoint_every=2", "eval.every=2", "eval.grid=10")
    return trained(spec, tmp_path_factory.mktemp("run"))


def parts_of(data: Bounce, index: np.ndarray) -> list[np.ndarray]:
    samples = torch.from_numpy(images(data, index)[0])
    return [part.numpy() for part in split_parts(samples, shapes_of(data))]


def test_known_count_is_that_of_the_clicks_that_a_detector_hears(data: Bounce) -> None:
    """Impacts are seen too, except in the first and the last frame, which cannot hold one."""
    index = np.arange(0, 600)
    video, sound = parts_of(data, index)
    facts = known_facts([data.truth(int(i)) for i in index])
    heard, seen = clicks(sound, per_frame=PER_FRAME), impacts(video[:, 0])
    known = facts.count != UNKNOWN
    assert 300 < known.sum() < 600
    assert [len(heard[i]) for i in np.flatnonzero(known)] == facts.count[known].tolist()
    within = [all(1 < t < 6 for t in data.impacts(int(i))) for i in index]
    assert all(len(seen[i]) == facts.count[i] for i in np.flatnonzero(known & within))
    gaps = np.array([np.diff(times).mean() if len(times) > 1 else np.nan for times in heard])
    fast, slow = (gaps[facts.tempo == tempo] for tempo in (0, 1))
    assert len(fast) > 30 and np.nanmax(fast) < 6.4 and (len(slow) == 0 or np.nanmin(slow) > 6.8)


def test_frames_of_sound_last_as_long_as_those_of_the_video(data: Bounce) -> None:
    video, sound = parts_of(data, np.arange(3))
    seen, heard = frames_of_part(video), frames_of_part(sound)
    assert seen.shape == (3, 8, 1, 16, 16) and heard.shape == (3, 8, 1, 32, PER_FRAME)
    np.testing.assert_array_equal(seen[1, 5, 0], video[1, 0, 5])
    np.testing.assert_array_equal(heard[1, 5, 0], sound[1, :, 5 * PER_FRAME : 6 * PER_FRAME])


def test_record_has_values_of_both_parts_with_their_n_and_both_floors(record: Record) -> None:
    (event,) = record.of("eval")
    rows = event["metrics"]
    assert {*NAMES, "sync", "loss:held_out", "loss:held_out/video", "loss:held_out/audio"} <= rows.keys()
    assert "errors" not in event
    assert rows["obeys:object"]["n"] == 24 > rows["obeys:count"]["n"] > rows["obeys:tempo"]["n"] > 0
    assert all(rows[f"obeys:{kind}"]["mean"] <= rows[f"obeys:{kind}/{part}"]["mean"]
               for kind in KINDS for part in ("video", "audio"))  # fmt: skip
    evaluated = record.environment[0]["evaluation"]
    for name in NAMES:
        _, _, part = name.partition("/")
        assert evaluated["floor"][name].keys() == {"held_out", "spoilt"}
        readers = evaluated["protocol"]["truths"][name]
        assert readers.keys() == ({part} if part else {"video", "audio"})
        assert all(about.keys() == {"sha256", "accuracy"} for about in readers.values())


def test_prompt_draws_a_film_with_sound_and_is_in_the_picture(record: Record, tmp_path: Path) -> None:
    grid = Image.open(record.path / "samples" / "step-00000002.png")
    captions = json.loads(grid.info["captions"])
    # A picture has at most eight videos, and no caption of a video that it does not have.
    assert len(captions) == 8 and all("bounces" in caption for caption in captions)
    drawn = {}
    for prompt in ("a seven bounces twice, fast", "an eight bounces slowly"):
        file = tmp_path / f"{prompt[:4]}.png"
        words = [str(record.path), "-n", "2", "-o", str(file), "--waveform", "--prompt", prompt]
        CliRunner().invoke(sample_command, words, catch_exceptions=False)
        picture = Image.open(file)
        assert json.loads(picture.info["captions"]) == [prompt] * 2
        drawn[prompt] = np.asarray(picture)
    first, second = drawn.values()
    # Two rows of eight frames of 16x16, enlarged four times, above a waveform.
    assert first.shape == (2 * (64 + 32) + 4, 8 * 64) and (first != second).any()
    words = [str(record.path), "-n", "2", "-o", str(tmp_path / "a.mp4"), "--prompt", "a seven bounces"]
    CliRunner().invoke(sample_command, words, catch_exceptions=False)
    with av.open(str(tmp_path / "a.mp4")) as film:
        assert len(film.streams.video) == len(film.streams.audio) == 1
        assert json.loads(film.metadata["comment"]) == ["a seven bounces"] * 2


def test_generated_clips_are_compared_with_their_own_captions(
    data: Bounce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that draws the real clip of each caption obeys it, if the readers make no error."""
    spec, sides = text_spec("eval.samples=60"), split(data, 0.1)
    known: dict[bytes, tuple[int, ...]] = {}
    for index in sides.held_out:
        facts = known_facts([data.truth(int(index))])
        row = tuple(int(values[0]) for values in facts.columns())
        known |= {frames_of_part(part).tobytes(): row for part in parts_of(data, np.array([index]))}

    def read(clips: np.ndarray) -> Facts:
        return Facts(*np.array([known[clip.tobytes()] for clip in clips]).T)

    perfect = SimpleNamespace(read=read, sha256="perfect", accuracy=1.0)
    monkeypatch.setattr(module, "clip_reader", lambda *_, **__: perfect)
    metrics = spec.eval.model_copy(update={"metrics": tuple(NAMES)})
    captions = open_captions(spec, data, CPU)
    found = Evaluator(metrics, data, sides.train, CPU, sides.held_out, captions=captions)

    def real(model, sampling, index, y):
        pixels = images(data, sides.held_out[index])[0]
        return torch.from_numpy(pixels).reshape(len(index), *x_shape(data)) / 127.5 - 1

    monkeypatch.setattr(generated_side, "draw", real)
    result = found(torch.nn.Identity())
    assert result is not None
    for name in NAMES:
        floor = found.noise_floor[name]
        assert result.metrics[name].mean == floor["held_out"]["mean"] == 1 > floor["spoilt"]["mean"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.metrics=['obeys:colour']"], "'obeys:colour' needs data whose captions state the colour"),
        (
            ["data.video_weight=1.0", "data.audio_weight=0.0", "eval.metrics=['obeys:count/audio']"],
            "'obeys:count/audio' needs data whose captions state the count",
        ),
    ],
)
def test_attributes_and_parts_that_a_run_lacks_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        modal("joint", *TEXT, *overrides)
    assert set(NAMES) < set(REFERENCE_FREE)


def test_captions_as_metrics_of_a_run_on_labels_are_refused() -> None:
    with pytest.raises(UserError, match="compares samples with their captions, but this run is conditioned"):
        modal("joint", "eval.metrics=['obeys:count']")


@pytest.mark.usefixtures("quick_networks")
def test_video_alone_is_measured_by_its_own_reader() -> None:
    only = ("data.video_weight=1.0", "data.audio_weight=0.0", "eval.metrics=['obeys:count/video']")
    alone = open_dataset(modal("joint", *TEXT, *only).data)
    train = np.arange(200)
    both = [prepared(name, alone, train, CPU) for name in ("obeys:object", "obeys:object/video")]
    assert [metric.about.keys() for metric in both] == [{"video"}] * 2
    x = torch.from_numpy(images(alone, train)[0])
    values = [metric(x, shapes_of(alone), torch.from_numpy(train)) for metric in both]
    assert values[0] == values[1] and values[0].n == 200


def test_metrics_of_one_data_set_read_its_split_and_the_samples_once(
    data: Bounce, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, reads = np.arange(40), []
    places = np.arange(8)
    parts = parts_of(data, places)

    def read(clips: np.ndarray) -> Facts:
        reads.append(clips.shape)
        return Facts(*np.zeros((3, len(clips)), np.int64))

    monkeypatch.setattr(
        module, "clip_reader", lambda *_, **__: SimpleNamespace(read=read, sha256="", accuracy=1)
    )
    monkeypatch.setattr(module, "images", lambda *given: reads.append("split") or images(*given))
    for name in NAMES:
        prepared(name, data, train, CPU).measure(parts, places)
    assert reads == ["split", *(frames_of_part(part).shape for part in parts)]
    prepared(NAMES[0], data, train, CPU).measure([part[::-1] for part in parts], places)
    assert len(reads) == 5


@pytest.mark.slow
def test_trained_readers_separate_oracle_from_shuffled_captions() -> None:
    """Clips of 12 frames have one to three impacts, in both tempi."""
    data = open_dataset(text_spec("data.frames=12").data)
    assert isinstance(data, Bounce)
    sides = split(data, 0.1)
    readers = ClipReaders(data, data.truth, sides.train)
    shown, stated = readers.shown(parts_of(data, sides.held_out)), readers.stated(sides.held_out)
    others = readers.stated(np.roll(sides.held_out, 1))
    for kind in KINDS:
        for parts in (shown, shown[:1], shown[1:]):
            assert clip_obedience(kind, parts, stated).mean > 0.85
            assert clip_obedience(kind, parts, others).mean < {"object": 0.2}.get(kind, 0.8)
