"""Imported weights are runs: they are sampled, evaluated, fine-tuned, reported and exported again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from harness.backbone.times import Times
from harness.cli.export import LAYOUTS as EXPORTED_NAMES
from harness.cli.main import cli
from harness.config.options import LAYOUTS as IMPORTED_NAMES
from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.exchange.export_run import EXPORTS
from harness.exchange.layouts import CHOICES
from harness.flow.golden import read
from harness.records import checkpoint
from harness.records.record import Record
from harness.train.trained_run import checkpoint_of_run, load_ema, spec_of_run
from tests.harness.latents.vae import save_vae
from tests.support.commands import flowrace
from tests.support.modal import modal
from tests.support.released import FILES, released
from tests.support.runs import TINY, events, tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")

# Of a run on the digits, without the size, which the weights determine.
DIGITS = [
    word
    for setting in (*TINY, "data.name=digits")
    if not setting.startswith(("backbone.size", "train.steps"))
    for word in ("--set", setting)
]
STEP = 12


def first_fast(names: Iterable[str]) -> list[Any]:
    """Return parameters of which the first is in the fast suite, and the others in the slow one."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


def done(*words: object) -> str:
    """Run a command that must succeed, and return its last line."""
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.rstrip().splitlines()[-1]


def imported(file: Path, out: Path, *words: object) -> Record:
    return Record(Path(done("import", file, "--out", out, *words)))


def wrong(*words: object) -> str:
    """Run a command that must fail by the user's mistake, and return the reason."""
    result = flowrace(*words)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return a run on the digits with a projector."""
    return trained(tiny("method.name=self_flow", f"train.steps={STEP}"), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def file(run: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return its weights in Self-Flow's layout."""
    output = tmp_path_factory.mktemp("weights") / "self-flow.pt"
    done("export", run.path, "--layout", "self-flow", "-o", output)
    return output


@pytest.fixture
def copy(file: Path, tmp_path: Path) -> Record:
    """Return the imported run."""
    return imported(file, tmp_path / "imported", "--step", STEP, *DIGITS)


def ema(record: Record, step: int | None = None) -> dict[str, Tensor]:
    return checkpoint.load(checkpoint_of_run(record.path, step)).part("ema")


def final(record: Record) -> dict[str, Tensor]:
    return checkpoint.load(sorted((record.path / "checkpoints").iterdir())[-1]).tensors


def test_choices_of_the_commands_are_the_layouts() -> None:
    assert set(IMPORTED_NAMES) == set(CHOICES) and set(EXPORTED_NAMES) == set(EXPORTS)


def test_imported_weights_are_evaluated_as_the_preset_of_their_data(file: Path, tmp_path: Path) -> None:
    """That of ImageNet's latents, 10,000 samples in 250 steps, would take hours on digits."""
    record = imported(file, tmp_path, "--step", STEP, "--set", "data.name=digits")
    assert record.spec["eval"]["samples"] == 500 and record.spec["eval"]["sampler"] == "heun"
    own = ("--set", "data.name=digits", "--set", "eval.samples=7")
    record = imported(file, tmp_path / "own", "--step", STEP, *own)
    assert record.spec["eval"]["samples"] == 7 and record.spec["eval"]["sampler"] == "heun"


def test_import_names_the_method_that_adds_to_the_network(file: Path, tmp_path: Path) -> None:
    words = (*DIGITS, "--set", "method.name=internal_guidance")
    reason = wrong("import", file, "--out", tmp_path, *words)
    assert "method.name = internal_guidance adds a further final layer" in reason


@pytest.mark.parametrize("name", first_fast(FILES))
def test_import_of_golden_weights_gives_the_released_velocity_and_exports_the_same_tensors(
    golden: Path, tmp_path: Path, name: str
) -> None:
    source = read(golden / f"{FILES[name][0]}.safetensors")
    torch.save({"ema": source.weights}, tmp_path / "weights.pt")
    record = imported(tmp_path / "weights.pt", tmp_path / "runs", "--layout", name)
    done("export", record.path, "--layout", name, "-o", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == source.weights.keys()
    assert all(torch.equal(back[key], source.weights[key]) for key in back)
    about = record.environment[0]["imported"]
    assert about["layout"] == name and about["part"] == "ema" and len(about["sha256"]) == 64


def test_network_of_an_imported_run_is_the_golden_one_bit_for_bit(golden: Path, tmp_path: Path) -> None:
    """REPA's convention is ours, so even the outputs are equal to those of the loaded golden file."""
    source = read(golden / "repa_loss.safetensors")
    torch.save(source.weights, tmp_path / "weights.pt")
    record = imported(tmp_path / "weights.pt", tmp_path / "runs")
    spec = spec_of_run(record.path, ())
    from harness.data.open import outlined

    model = load_ema(checkpoint_of_run(record.path, None), spec, outlined(spec.data), torch.device("cpu"))
    draw = source.given
    x = (1 - draw["t"])[:, None, None, None] * draw["x0"] + draw["t"][:, None, None, None] * draw["eps"]
    arguments = x, Times.per_sample(draw["t"]), draw["y"]
    assert torch.equal(model(*arguments).velocity, source.model("repa")(*arguments).velocity)
    assert (model(*arguments).velocity - source.out["v"]).abs().max() < 1e-5


@pytest.mark.parametrize("name", first_fast(["repa", "sit", "sra", "self-flow", "diffusers"]))
def test_trained_run_returns_from_every_layout(run: Record, tmp_path: Path, name: str) -> None:
    """Only the rotation of one weight, which reverses time, rounds."""
    output = tmp_path / ("folder" if name == "diffusers" else "weights.pt")
    done("export", run.path, "--layout", name, "-o", output)
    layout = {"diffusers": "auto"}.get(name, name)
    back = ema(imported(output, tmp_path / "imported", "--layout", layout, *DIGITS))
    for key, value in ema(run).items():
        # The released last layer of these has sigma channels.
        given = back[key][: len(value) : 1] if len(back[key]) == len(value) else None
        if given is None:
            given = back[key].unflatten(0, (4, 2))[:, :1].flatten(0, 1)
        assert torch.allclose(given, value, atol=1e-6, rtol=0), key


def test_exports_of_equal_weights_are_equal_bytes(run: Record, tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        done("export", run.path, "--layout", "repa", "-o", tmp_path / name)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert torch.load(tmp_path / "a.pt", weights_only=True)["steps"] == STEP


def test_same_weights_are_the_same_run_in_any_file(file: Path, copy: Record, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "other.pt")
    again = imported(tmp_path / "other.pt", copy.path.parent, "--step", STEP, *DIGITS)
    assert again.path == copy.path and len(again.environment) == 1
    state["blocks.0.mlp.fc1.bias"][0] += 1
    torch.save(state, tmp_path / "changed.pt")
    assert imported(tmp_path / "changed.pt", copy.path.parent, *DIGITS).id != copy.id


def test_imported_run_is_sampled_evaluated_probed_and_reported(copy: Record, tmp_path: Path) -> None:
    done("sample", copy.path, "-n", 5, "--npz", tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive["arr_0"].shape == (5, 8, 8, 1)
    done("eval", copy.path)
    event = Record(copy.path).of("eval")[0]
    assert event["step"] == STEP and event["metrics"]["fd:local"]["mean"] > 0 and event["flops"] == 0
    assert json.loads(flowrace("cost", copy.path, "--json").output)["method"] == "flow"
    rows = json.loads(flowrace("probe", copy.path, "--samples", 20, "--json").output)["rows"]
    assert len(rows) == 4
    done("report", copy.path.parent, "-o", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 0


def test_samples_of_an_import_are_those_of_the_run(run: Record, copy: Record, tmp_path: Path) -> None:
    """The time direction is reversed and back, so values may round, but not more."""
    for name, record in (("a", run), ("b", copy)):
        done("sample", record.path, "-n", 8, "--npz", tmp_path / f"{name}.npz")
    a, b = (np.load(tmp_path / f"{name}.npz")["arr_0"].astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 1


def test_fine_tuning_counts_on_from_the_imported_step(copy: Record) -> None:
    done("extend", copy.path, "--steps", STEP + 4, "--no-track", "--json")
    record = Record(copy.path)
    steps = [event["step"] for event in record.of("train")]
    assert steps == [STEP + 1, STEP + 2, STEP + 3, STEP + 4] and record.status == "done"
    first, second = (event["flops"] for event in record.of("train")[:2])
    assert second == 2 * first > 0


@pytest.mark.parametrize("method", first_fast(["self_flow", "flow", "repa", "layersync"]))
def test_fine_tuning_begins_with_the_imported_weights(copy: Record, method: str) -> None:
    """With a learning rate of almost zero, the weights stay the imported ones."""
    rate = ("--set", "train.learning_rate=1e-30", "--set", f"method.name={method}")
    rate += ("--set", "method.encoder.name=random:tiny") if method == "repa" else ()
    folder = Path(done("extend", copy.path, "--steps", STEP + 2, *rate, "--no-track", "--json"))
    assert folder.parent == copy.path.parent.resolve() and folder.name != copy.id
    tensors = final(Record(folder))
    start = checkpoint.load(checkpoint_of_run(copy.path, None))
    for name, value in start.part("ema").items():
        assert torch.equal(tensors[f"model.{name}"], value)
    if method == "self_flow":
        for name, value in start.part("method").items():
            assert torch.equal(tensors[f"method.{name}"], value)


@pytest.mark.slow
def test_fine_tuning_in_two_parts_has_the_bits_of_one(copy: Record, file: Path, tmp_path: Path) -> None:
    settings = ("--set", "method.name=self_flow", "--no-track", "--json")
    Path(done("extend", copy.path, "--steps", STEP + 3, *settings))
    parts = Record(Path(done("extend", copy.path, "--steps", STEP + 6, *settings)))
    other = imported(file, tmp_path / "other", "--step", STEP, *DIGITS)
    whole = Record(Path(done("extend", other.path, "--steps", STEP + 6, *settings)))
    assert parts.id == whole.id and events(parts) == events(whole)
    assert all(torch.equal(final(parts)[name], value) for name, value in final(whole).items())


def test_fine_tuned_run_resumes_when_the_import_was_moved(copy: Record, tmp_path: Path) -> None:
    settings = ("--set", "method.name=layersync", "--no-track", "--json")
    folder = Path(done("extend", copy.path, "--steps", STEP + 4, *settings))
    for old in (folder / "checkpoints").iterdir():
        old.unlink()
    copy.path.rename(tmp_path / "moved")
    (folder / "done").unlink()
    assert "imported weights" in wrong("run", folder, "--no-track")
    moved = tmp_path / "moved" / "ema" / f"step-{STEP:08d}.safetensors"
    done("run", folder, "--set", f"start.file={moved}", "--no-track", "--quiet")
    assert Record(folder).status == "done"


def test_run_of_an_import_without_more_steps_measures_it_and_trains_nothing(copy: Record) -> None:
    done("run", copy.path, "--no-track", "--quiet")
    record = Record(copy.path)
    assert record.of("train") == [] and [event["step"] for event in record.of("eval")] == [STEP]


def test_settings_of_a_trained_run_cannot_change_on_the_way(run: Record) -> None:
    reason = wrong("extend", run.path, "--steps", 20, "--set", "method.name=repa", "--no-track")
    assert "trained with other settings" in reason


def test_latents_without_data_are_decoded_by_a_named_codec(golden: Path, tmp_path: Path) -> None:
    torch.save(read(golden / "repa_loss.safetensors").weights, tmp_path / "weights.pt")
    record = imported(tmp_path / "weights.pt", tmp_path / "runs", "--set", "eval.sampler_steps=2")
    words = ("sample", record.path, "-n", 2, "--npz", tmp_path / "samples.npz")
    assert "set data.codec" in wrong(*words)
    halves = f"data.codec=sd-vae:{save_vae(tmp_path / 'halves')}"
    assert "generates latents (4, 8, 8)" in wrong(*words, "--set", halves)
    done(*words, "--set", f"data.codec=sd-vae:{save_vae(tmp_path / 'eighths', blocks=4)}")
    with np.load(tmp_path / "samples.npz") as archive:
        assert archive["arr_0"].shape == (2, 64, 64, 3)


def test_spec_of_an_import_is_that_of_the_weights(golden: Path, tmp_path: Path) -> None:
    torch.save(read(golden / "sit_forward.safetensors").weights, tmp_path / "weights.pt")
    record = imported(tmp_path / "weights.pt", tmp_path / "runs", "--layout", "sit")
    spec: RunSpec = spec_of_run(record.path, ())
    assert (spec.backbone.size, spec.backbone.patch, spec.backbone.learn_sigma) == ("6x64x4", 2, True)
    assert (spec.data.resolution, spec.data.classes, spec.start.step) == (64, 10, 0)
    assert spec.start.weights and record.id == spec.id


def test_network_of_pixels_asks_for_its_data(file: Path, tmp_path: Path) -> None:
    assert "generates 1x8x8, which are not latents" in wrong("import", file, "--out", tmp_path)
    words = ("import", file, "--out", tmp_path, "--set", "data.name=tones", "--set", "data.frames=16")
    assert "name other data with --set data.name" in wrong(*words)
    assert list(tmp_path.iterdir()) == []


def test_reg_is_imported_with_its_extra_token(tmp_path: Path) -> None:
    """The token's width is that of the encoder, which the user names unless it is DINOv2-B."""
    state, _ = released("reg")
    torch.save(state, tmp_path / "weights.pt")
    words = ("import", tmp_path / "weights.pt", "--heads", 4, "--out", tmp_path / "runs")
    assert "--set method.encoder.name" in wrong(*words)
    # The local encoder `tiny` has 32 channels.
    state, _ = released("reg", shape=(1, 8, 8), extra=32)
    torch.save(state, tmp_path / "weights.pt")
    record = Record(Path(done(*words, *DIGITS, "--set", "method.encoder.name=local:tiny")))
    done("sample", record.path, "-n", 3, "--npz", tmp_path / "samples.npz")
    done("export", record.path, "--layout", "reg", "-o", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in back)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--layout", "repa"), "give one RUN and -o FILE"),
        (("--layout", "repa", "-o", "weights.npz"), r"must end in .pt or .safetensors"),
        (("--layout", "repa", "--table", "runs", "-o", "weights.pt"), "give one of them"),
        (("--layout", "reg", "-o", "weights.pt"), "it has no extra token"),
        (("--layout", "repa", "-o", "missing/weights.pt"), "no such folder missing"),
        (("--layout", "repa", "--step", "5", "-o", "weights.pt"), "no checkpoint at step 5"),
        (
            (
                "--step",
                "5",
            ),
            "leave it out, or give --layout",
        ),
    ],
)
def test_mistakes_of_an_export_are_named(
    run: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reason in wrong("export", run.path, *words)
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_replaced_only_if_asked(run: Record, tmp_path: Path) -> None:
    words = ("export", run.path, "--layout", "repa", "-o", tmp_path / "weights.pt")
    (tmp_path / "weights.pt").write_text("mine")
    assert "already exists" in wrong(*words)
    done(*words, "--overwrite")
    assert torch.load(tmp_path / "weights.pt", weights_only=True)["ema"]


def test_run_that_is_no_image_is_refused_by_layouts(tmp_path: Path) -> None:
    record = trained(modal("audio", "train.steps=1"), tmp_path)
    reason = wrong("export", record.path, "--layout", "repa", "-o", tmp_path / "weights.pt")
    assert "released layouts hold networks of square images" in reason


@pytest.mark.parametrize("command", ["import", "export", "extend", "sample"])
def test_help_has_an_example_with_imported_weights(command: str) -> None:
    output = flowrace(command, "--help").output
    assert f"flowrace {command} " in output.partition("Example:")[2]
