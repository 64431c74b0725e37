"""The Python API has the numbers of the commands; every name has an example, which the tests run."""

from __future__ import annotations

import doctest
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import flowrace
from harness.cli.main import cli
from harness.environments.base import open_task
from harness.environments.demonstrations import write_demonstrations
from harness.errors import UserError
from harness.records.record import Record
from harness.train.progress import Quiet
from metrics import MetricError, frechet_distance

ROOT = Path(__file__).parents[2]
LAST = ROOT / "tests" / "fixtures" / "last_version"
SMALL = (
    "backbone.size=pico", "train.steps=4", "eval.every=4", "eval.samples=16", "eval.sampler_steps=2",
    "runtime.threads=1",
)  # fmt: skip
pytestmark = pytest.mark.usefixtures("quick_networks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a working directory with a finished study in runs/last, a run in runs/mine and a claim."""
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copytree(LAST / "studies" / "last", folder / "runs" / "last")
    shutil.copy(LAST / "made_with" / "claim.toml", folder)
    write_demonstrations(open_task("open-and-place"), 4, folder / "demos")
    flowrace.train(flowrace.load_spec("digits", SMALL), folder / "runs" / "mine", Quiet())
    return folder


@pytest.fixture
def run(folder: Path) -> Record:
    return flowrace.find_runs(folder / "runs" / "mine")[0]


def printed(*words: object) -> str:
    """Return the output of a command."""
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", flowrace.__all__)
def test_docstring_has_an_example_that_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (example,) = doctest.DocTestFinder(recurse=False).find(
        getattr(flowrace, name), name, globs={"flowrace": flowrace}
    )
    assert example.examples, f"flowrace.{name} has no example"
    report = io.StringIO()
    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.write)
    assert found.failed == 0, report.getvalue()


def test_import_loads_no_heavy_package() -> None:
    heavy = ("torch", "numpy", "pandas", "mlflow", "click")
    code = f"import flowrace, sys; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert found.stdout.strip() == "[]", found.stderr


def test_all_lists_every_public_function() -> None:
    functions = [
        name for name, value in vars(flowrace).items() if callable(value) and not name.startswith("_")
    ]
    assert sorted(flowrace.__all__) == sorted(set(functions) - {"Path", "Any", "Mapping", "Sequence"})


@pytest.mark.parametrize("table", ["runs", "training", "evaluations", "gradients"])
def test_table_equals_that_of_export(folder: Path, table: str, tmp_path: Path) -> None:
    calls = {"runs": "run_table", "training": "training_table", "evaluations": "evaluation_table"}
    call = calls.get(table, "gradient_table")
    frame = getattr(flowrace, call)(folder / "runs" / "last")
    words = ("export", folder / "runs" / "last", "--table", table)
    assert printed(*words) == frame.to_csv(index=False)
    assert printed(*words, "-o", tmp_path / "a.parquet").strip() == str(tmp_path / "a.parquet")
    assert list(pd.read_parquet(tmp_path / "a.parquet").columns) == list(frame.columns)


def test_tables_have_the_events_of_the_records(folder: Path) -> None:
    records = flowrace.find_runs(folder / "runs" / "last")
    training, evaluated = (
        call(folder / "runs" / "last") for call in (flowrace.training_table, flowrace.evaluation_table)
    )
    for record in records:
        own = training[training["run"] == record.id]
        assert own["loss"].tolist() == [event["loss"] for event in record.of("train")]
        assert own["losses.flow"].tolist() == [event["losses"]["flow"] for event in record.of("train")]
        values = evaluated[(evaluated["run"] == record.id) & (evaluated["metric"] == "fd:local")]
        assert values["mean"].tolist() == [e["metrics"]["fd:local"]["mean"] for e in record.of("eval")]


@pytest.mark.usefixtures("undrawn")
def test_race_equals_that_of_the_report(folder: Path, tmp_path: Path) -> None:
    race = flowrace.read_race(folder / "runs" / "last", target=134)
    words = ("report", folder / "runs" / "last", "-o", tmp_path / "a.html", "--target", 134, "--json")
    page = json.loads(printed(*words))
    for frame, rows in (
        (flowrace.speedup_table(race), page["rows"]),
        (flowrace.crossing_table(race), page["runs"]),
    ):
        pd.testing.assert_frame_equal(frame, pd.DataFrame(rows, columns=frame.columns))
    report = flowrace.write_report(folder / "runs" / "last", output=tmp_path / "b.html", target=134)
    assert dict(report.report.verdict) == page["verdict"]
    assert report.csv.read_text() == (tmp_path / "a.csv").read_text()


def test_verdict_equals_that_of_audit(folder: Path) -> None:
    (found,) = flowrace.judge_claims([folder / "claim.toml"], folder / "runs" / "last")
    card = json.loads(printed("audit", folder / "claim.toml", folder / "runs" / "last", "--json"))
    assert (found.verdict, found.target, found.n_pairs) == (card["verdict"], card["target"], card["n_pairs"])
    assert found.gain is not None and found.gain.estimate == card["axes"]["flops"]["speedup"]


def test_cost_equals_that_of_the_command() -> None:
    found = flowrace.estimate_cost(flowrace.load_spec("digits", SMALL), 2, 1e10)
    words = [word for setting in SMALL for word in ("--set", setting)]
    cost = json.loads(printed("cost", "digits", *words, "--devices", 2, "--flops-per-second", 1e10, "--json"))
    assert {"method": "flow"} | found.as_json() == cost


def test_plan_equals_that_of_sweep(tmp_path: Path) -> None:
    plan = json.loads(printed("sweep", "digits", "--out", tmp_path, "--dry-run", "--json"))
    assert [cell.id for cell in flowrace.plan_study("digits")] == [run["id"] for run in plan["runs"]]


def test_evaluation_equals_that_of_the_command(run: Record) -> None:
    result = json.loads(printed("eval", run.path, "--set", "eval.samples=24", "--json"))
    found = flowrace.evaluate_run(run.path, overrides=["eval.samples=24"])
    assert (found.rows, found.protocol) == (result["metrics"], result["protocol"])


def test_later_evaluation_equals_that_of_the_command(run: Record) -> None:
    words = ("--guidance", "1,2", "--steps", "last", "--json")
    assert (
        flowrace.evaluate_later(run.path, guidance=[1, 2], steps="last")
        == json.loads(printed("eval", run.path, *words))["evaluations"]
    )


def test_samples_equal_those_of_the_command(run: Record, tmp_path: Path) -> None:
    printed("sample", run.path, "-n", 5, "--classes", "3,7", "-o", tmp_path / "a.npz")
    saved = np.load(tmp_path / "a.npz")["arr_0"]
    drawn = flowrace.draw_samples(run.path, 5, classes=[3, 7])
    assert torch.equal(drawn.permute(0, 2, 3, 1), torch.from_numpy(saved))


def test_scores_equal_those_of_the_command(run: Record, tmp_path: Path) -> None:
    printed("sample", run.path, "-n", 30, "-o", tmp_path / "a.npz")
    words = (
        "eval",
        tmp_path / "a.npz",
        "--against",
        "digits",
        "--metrics",
        "fd,prdc",
        "--extractor",
        "local",
    )
    scores = json.loads(printed(*words, "--json"))
    found = flowrace.score_samples(tmp_path / "a.npz", "digits", ["fd", "prdc"], extractor="local")
    assert {name: value.row() for name, value in found.metrics.items()} == scores["metrics"]


def test_loaded_model_is_the_ema_of_the_checkpoint(run: Record) -> None:
    from harness.records import checkpoint, checkpoint_files

    saved = checkpoint.load(checkpoint_files.checkpoints(run.path / "checkpoints")[-1]).part("ema")
    loaded = flowrace.load_model(run.path).state_dict()
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_train_returns_a_finished_run_when_called_again(folder: Path, run: Record) -> None:
    again = flowrace.train(flowrace.load_spec("digits", SMALL), folder / "runs" / "mine", Quiet())
    assert again.path == run.path and len(again.environment) == 1


def test_measure_accepts_arrays_and_tensors() -> None:
    real, fake = np.random.default_rng(1).normal(size=(2, 300, 6)).astype(np.float32)
    names = ["fd", "fd_infinity", "kid", "cmmd", "prdc", "memorisation"]
    arrays = flowrace.measure(names, real, fake)
    tensors = flowrace.measure(names, torch.from_numpy(real), torch.from_numpy(fake))
    assert [float(value) for value in arrays.values()] == [float(value) for value in tensors.values()]
    assert float(arrays["fd"]) == float(frechet_distance(real, fake))
    assert [*arrays][4:] == ["precision", "recall", "density", "coverage", "memorisation"]


def test_measure_computes_metrics_of_logits() -> None:
    logits, labels = np.eye(4)[[0, 1, 2, 3] * 5] * 9, np.array([0, 1, 2, 0] * 5)
    found = flowrace.measure(["is", "accuracy"], logits, logits, logits=logits, labels=labels)
    assert float(found["accuracy"]) == pytest.approx(0.75) and 1 < float(found["is"]) <= 4


def test_speedup_accepts_censored_times() -> None:
    from reports.stats.speedup import Time

    found = flowrace.speedup({0: Time(400, "right"), 1: 420}, {0: 200, 1: 215})
    assert found.high == float("inf") and found.censored_baseline == 1


def test_mistakes_raise_errors_with_the_nearest_match(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        flowrace.load_spec("digit")
    with pytest.raises(UserError, match="no such folder"):
        flowrace.run_table(tmp_path / "nowhere")
    with pytest.raises(MetricError, match="unknown metric 'fdd'"):
        flowrace.measure(["fdd"], np.ones((2, 2)), np.ones((2, 2)))


@pytest.mark.slow
def test_pyright_knows_every_name(tmp_path: Path) -> None:
    """A user's type checker knows every parameter and result of a public name."""
    calls = "\n".join(f"reveal_type(flowrace.{name})" for name in flowrace.__all__)
    (tmp_path / "user.py").write_text(f"import flowrace\n{calls}\n")
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "user.py"]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    output = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300).stdout
    types = [entry["message"] for entry in json.loads(output)["generalDiagnostics"]]
    assert len(types) == len(flowrace.__all__) and not [text for text in types if "Unknown" in text]
