"""Jobs of a stranger take one command each: released weights, latents of other code, and logs of W&B."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.flow.golden import read
from harness.records.record import Record
from tests.harness.latents.vae import save_vae
from tests.reports import logged
from tests.reports.audits import claim_file
from tests.support.commands import flowrace
from tests.support.latent_layouts import moments, repa_files, write
from tests.support.released import FILES
from tests.support.runs import TINY

pytestmark = pytest.mark.usefixtures("quick_networks")

SIDE = 64
"""Side of the images of the golden networks, whose latents are 4x8x8."""
QUICK = ("--set", "eval.sampler=heun", "--set", "eval.sampler_steps=1", "--set", "eval.batch_size=64")
SETTINGS = [
    word for word in TINY if not word.startswith(("data.", "backbone.", "train.steps", "eval.samples"))
]
LIGHT = (
    'eval.metrics=["loss:held_out"]', "train.precision=float32", "runtime.compile=false", "data.workers=0",
)  # fmt: skip
"""Settings of a network this small, and a metric that needs no other network."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.codec=sd-vae:{save_vae(tmp_path_factory.mktemp('vae'), blocks=4)}"


def released(name: str, golden: Path) -> Path:
    """Write golden weights as the released checkpoints nest them."""
    state = read(golden / f"{FILES[name][0]}.safetensors").weights
    torch.save({"ema": state, "opt": {}, "steps": 40}, f"{name}.pt")
    return Path(f"{name}.pt")


def latents(name: str = "repa-data") -> Path:
    """Write latents of 64x64 images in REPA's layout, of two classes."""
    records = moments(16, side=8)[:, 0]
    return write(Path(name) / "vae-sd", repa_files(records, tuple(n % 2 for n in range(16)))).parent


def done(*words: object) -> str:
    """Run a command that must succeed, and return its last line."""
    result = flowrace(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.rstrip().splitlines()[-1]


def settings(*fields: str) -> list[str]:
    return [word for field in (*SETTINGS, *fields) for word in ("--set", field)]


@pytest.mark.parametrize("name", ["repa", "sit", "self-flow"])
def test_64_images_are_sampled_from_released_weights(golden: Path, codec: str, name: str) -> None:
    file = released(name, golden)
    words = ("sample", file, "--layout", name, "-n", 64, "--set", codec, *QUICK)
    done(*words, "--npz", "samples.npz")
    with np.load("samples.npz") as archive:
        assert archive["arr_0"].shape == (64, SIDE, SIDE, 3)
    assert {path.name for path in Path().iterdir()} == {"cache", f"{name}.pt", "samples.npz"}


def test_released_weights_are_fine_tuned_on_latents_of_other_code(golden: Path) -> None:
    file, root = released("repa", golden), latents()
    fields = settings(f"data.root={root}", "data.held_out=0.5", "method.name=self_flow", *LIGHT)
    line = done("extend", file, "--steps", 42, *fields, "--no-track", "--json")
    record = Record(Path(line))
    assert [event["step"] for event in record.of("train")] == [41, 42] and record.status == "done"
    assert done("extend", file, "--steps", 42, *fields, "--no-track", "--json") == line


def test_run_is_exported_and_loaded_in_the_released_layout(golden: Path) -> None:
    file = released("repa", golden)
    run = done("import", file)
    done("export", run, "--layout", "repa", "-o", "back.safetensors")
    back, state = load_file("back.safetensors"), torch.load(file, weights_only=True)["ema"]
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in back)
    assert done("import", "back.safetensors", "--step", 40) == run


def test_latents_in_repas_layout_are_trained_on(codec: str) -> None:
    size = ("data.classes=2", f"data.resolution={SIDE}", "backbone.size=pico", "eval.samples=4")
    fields = (f"data.root={latents()}", codec, "data.held_out=0.5", "train.steps=2", *size, *LIGHT)
    record = Record(Path(done("run", "imagenet256", *settings(*fields), "--no-track")))
    assert record.status == "done" and record.of("eval")[-1]["metrics"]["loss:held_out"]["mean"] > 0
    assert list(record.path.glob("samples/*.png"))


def test_claim_is_audited_from_an_export_of_wandb(folder: Path) -> None:
    """The curves of the new method are those of the old one, 2.2 times faster."""
    (export,) = logged.wide(folder)
    claim = claim_file(folder, axis="steps", factor=1.5)
    found = json.loads(flowrace("audit", claim, export, "--json").stdout)
    assert found["verdict"] == "supported" and found["axes"]["steps"]["speedup"] == pytest.approx(2.2)
