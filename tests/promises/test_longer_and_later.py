"""Train once, ask later: extended runs have the bits of longer ones, later evaluations those of early ones.

The authority is the run that was asked everything at once.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.cli.main import cli
from harness.config import registry
from harness.errors import UserError
from harness.records.evaluations import Conditions
from harness.records.record import Record
from harness.train.loop import train
from sweeps.cli.extend import _longer
from tests.support.modal import method_words
from tests.support.runs import TINY, events, everything, tiny, torchrun, trained, weights

pytestmark = pytest.mark.usefixtures("quick_networks")

LONG, SHORT = ("train.steps=18",), ("train.steps=10",)
"""The shorter run ends at a step without a checkpoint or an evaluation of the longer one."""
FAST = ("self_flow",)


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in registry.METHODS],
)
def test_extended_run_equals_the_longer_run(method: str, tmp_path: Path) -> None:
    words = method_words(method)
    trained(tiny(*words, *SHORT), tmp_path / "short")
    extended = trained(tiny(*words, *LONG), tmp_path / "short")
    at_once = trained(tiny(*words, *LONG), tmp_path / "long")
    assert extended.id == at_once.id and extended.status == "done"
    assert weights(extended) == weights(at_once) and events(extended) == events(at_once)
    assert len(extended.environment) == 2


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("train.accumulate=2",), id="accumulated", marks=pytest.mark.slow),
        pytest.param(("data.workers=1",), id="workers", marks=pytest.mark.slow),
        pytest.param(("train.precision=bfloat16",), id="bfloat16", marks=pytest.mark.slow),
        pytest.param(("train.warmup_steps=14",), id="warm-up", marks=pytest.mark.slow),
    ],
)
def test_extension_holds_however_a_run_is_executed(words: tuple[str, ...], tmp_path: Path) -> None:
    trained(tiny(*words, *SHORT), tmp_path / "short")
    extended = trained(tiny(*words, *LONG), tmp_path / "short")
    assert weights(extended) == weights(trained(tiny(*words, *LONG), tmp_path / "long"))


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_extension_by_two_processes_equals_the_longer_run(shard: bool, tmp_path: Path) -> None:
    words = (*TINY, "method.name=self_flow", *(["runtime.shard=true"] if shard else []))
    for folder, lengths in (("short", (SHORT, LONG)), ("long", (LONG,))):
        for length in lengths:
            result = torchrun("digits", (*words, *length), tmp_path / folder)
            assert result.returncode == 0, result.stderr
    extended, at_once = (
        Record(next(tmp_path.glob(f"{name}/*/spec.toml")).parent) for name in ("short", "long")
    )
    assert weights(extended) == weights(at_once) and events(extended) == events(at_once)


def test_evaluation_at_the_end_of_the_shorter_run_is_kept(tmp_path: Path) -> None:
    short = trained(tiny(*SHORT), tmp_path)
    (last,) = (event for event in short.of("eval") if event["step"] == 10)
    extended = trained(tiny(*LONG), tmp_path)
    assert [event["step"] for event in extended.of("eval")] == [6, 10, 12, 18]
    (kept,) = (event for event in extended.of("eval") if event["step"] == 10)
    assert kept["metrics"] == last["metrics"] and kept["flops"] == last["flops"]


def test_command_line_extends_in_the_same_folder(tmp_path: Path) -> None:
    words = [word for override in TINY for word in ("--set", override)]
    folders = [
        run("run", "digits", *words, "--set", steps, "--out", tmp_path, "--no-track", "--quiet").split()[-1]
        for steps in ("train.steps=6", "train.steps=12")
    ]
    assert folders[0] == folders[1] and Record(Path(folders[0])).steps == 12
    assert run("extend", folders[0], "--steps", "15", "--no-track").split()[-1] == folders[0]
    assert Record(Path(folders[0])).last_step == 15


def test_copied_run_under_another_name_is_not_begun_again(tmp_path: Path) -> None:
    folder = trained(tiny(), tmp_path).path.rename(tmp_path / "copy")
    with pytest.raises(UserError, match=r"copy does not match the run id \w+ in its spec.toml"):
        _longer(folder, 20, ())


def test_longer_run_answers_a_shorter_spec(tmp_path: Path) -> None:
    before = everything(trained(tiny(), tmp_path))
    assert everything(trained(tiny("train.steps=6"), tmp_path)) == before


def test_schedule_that_depends_on_the_length_is_another_run(tmp_path: Path) -> None:
    """A decaying learning rate differs from the first step after the warm-up."""
    short, long = (tiny("train.decay=cosine", steps) for steps in ("train.steps=6", "train.steps=12"))
    assert short.id != long.id and tiny("train.steps=6").id == tiny("train.steps=12").id
    folder = train(short, tmp_path, Quietly())
    with pytest.raises(UserError, match=r"cannot be extended: train\.decay makes .*; train a new run"):
        failing("extend", folder, "--steps", "12")


def test_longer_run_without_its_last_checkpoint_is_rejected(tmp_path: Path) -> None:
    record = trained(tiny(*SHORT), tmp_path)
    shutil.rmtree(record.path / "checkpoints")
    before = (record.path / "events.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"cannot continue from step 10 to 18: its checkpoint .* was deleted"):
        trained(tiny(*LONG), tmp_path)
    assert (record.path / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "wanted",
    [
        ('eval.metrics=["fd:local","precision:local"]',),
        pytest.param(("eval.guidance=1.5",), marks=pytest.mark.slow),
        ("eval.samples=40", "eval.sampler=euler"),
    ],
)
def test_later_evaluation_equals_one_during_training(wanted: tuple[str, ...], tmp_path: Path) -> None:
    first = trained(tiny(), tmp_path / "later")
    steps, checkpoint = events(first), weights(first)
    later, at_once = trained(tiny(*wanted), tmp_path / "later"), trained(tiny(*wanted), tmp_path / "once")
    assert later.id == at_once.id and len(later.environment) == 1
    assert events(later) == steps and weights(later) == checkpoint
    assert [(e["step"], e["metrics"]) for e in later.of("eval")] == [
        (e["step"], e["metrics"]) for e in at_once.of("eval")
    ]
    assert later.shown_conditions == Conditions.of_spec(tiny(*wanted).eval.model_dump())


def test_earlier_conditions_stay_readable(tmp_path: Path) -> None:
    first = trained(tiny(), tmp_path)
    values = [event["metrics"] for event in first.of("eval")]
    later = trained(tiny("eval.guidance=2.0"), tmp_path)
    assert [c.guidance for c in later.views] == [2.0, 1.0]
    assert [event["metrics"] for event in later.under(later.views[1]).of("eval")] == values
    assert later.views[0].name(later.views) == "guidance=2"


@pytest.mark.slow
def test_half_precision_halves_the_kept_weights_and_is_named(tmp_path: Path) -> None:
    full, half = (
        trained(tiny(f"train.keep_precision={name}"), tmp_path / name) for name in ("float32", "bfloat16")
    )
    sizes = [(record.path / "ema" / "step-00000006.safetensors").stat().st_size for record in (full, half)]
    assert 0.45 < sizes[1] / sizes[0] < 0.62
    later = trained(tiny("eval.guidance=2.0", "train.keep_precision=bfloat16"), tmp_path / "bfloat16")
    assert later.shown_conditions.ema == "bfloat16" and later.shown_conditions.guidance == 2.0


def test_steps_whose_weights_were_not_kept_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("train.keep_checkpoints=1", "eval.every=4")
    trained(tiny(*words), tmp_path)
    capsys.readouterr()
    later = trained(tiny(*words, "eval.guidance=2.0"), tmp_path)
    assert "2 evaluated steps (4, 8) cannot be measured again" in capsys.readouterr().out
    assert [event["step"] for event in later.of("eval")] == [12]


def run(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def failing(*words: object) -> Any:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exception is not None
    raise result.exception


class Quietly:
    """A display of nothing."""

    def note(self, message: str) -> None: ...
    def begin(self, step: int, steps: int) -> None: ...
    def step(self, step: int, loss: float) -> None: ...
    def evaluated(self, step: int, metrics: dict[str, Any]) -> None: ...


def test_evaluations_are_appended_once(tmp_path: Path) -> None:
    record = trained(tiny(), tmp_path)
    words = ("eval", record.path, "--guidance", "1,2", "--metrics", "fd:local,recall:local", "--json")
    measured = json.loads(run(*words))["evaluations"]
    assert [(row["step"], row["conditions"]["guidance"]) for row in measured] == [
        (6, 1.0), (12, 1.0), (6, 2.0), (12, 2.0),
    ]  # fmt: skip
    lines = (record.path / "evaluations.jsonl").read_bytes()
    assert json.loads(run(*words))["evaluations"] == measured
    assert (record.path / "evaluations.jsonl").read_bytes() == lines
