"""Missing weights: a dry run lists them with the runs that need them, and a sweep stops before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.config.data_spec import DataSpec
from harness.encoders.base import Choice
from harness.encoders.base import check_weights as check_encoder
from harness.errors import UserError
from harness.latents.dataset import check_codec
from metrics.extractors.find_weights import check_weights as check_extractor
from metrics.value import MetricError
from sweeps.plan.missing_weights import find_missing
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study
from tests.support.commands import flowrace
from tests.sweeps.conftest import SMALL_RUNS

ENCODER = "timm:vit_tiny_patch16_224.augreg_in21k"
STUDY = f"""name = "needy"
base = "digits"
baseline = "flow"
[axes]
seed = [0, 1]
"method.name" = ["flow", "repa"]
[methods.repa]
encoder.name = "{ENCODER}"
[set]
{SMALL_RUNS}"""


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "needy.toml"
    file.write_text(STUDY)
    return file


def test_dry_run_lists_missing_weights_with_the_runs_that_need_them(study: Path, tmp_path: Path) -> None:
    words = ("sweep", study, "--out", tmp_path / "out", "--set", 'eval.metrics=["fd:local", "fd:dinov2-s"]')
    found = flowrace(*words, "--dry-run", "--json")
    assert found.exit_code == 0
    encoder, extractor = sorted(json.loads(found.output)["missing_weights"], key=lambda one: one["kind"])
    assert (encoder["kind"], encoder["name"]) == ("encoder", ENCODER)
    assert encoder["runs"] == ["repa seed 0", "repa seed 1"]
    assert (extractor["kind"], extractor["name"], len(extractor["runs"])) == ("extractor", "dinov2-s", 4)
    text = flowrace(*words, "--dry-run")
    assert text.exit_code == 0 and "missing weights:\n" in text.output
    assert f"encoder {ENCODER} (2 runs: repa seed 0, repa seed 1): " in text.output
    assert "huggingface.co" in text.output and "--set methods.repa.encoder.weights=FILE" in text.output


def test_sweep_with_missing_weights_starts_nothing(study: Path, tmp_path: Path) -> None:
    found = flowrace("sweep", study, "--out", tmp_path / "out", "--no-track")
    assert isinstance(found.exception, UserError) and ENCODER in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_option_that_the_message_names_makes_the_plan_complete(study: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.touch()
    for option in (f"methods.repa.encoder.weights={file}", "methods.repa.encoder.download=true"):
        assert find_missing(make_plan(load_study(str(study), [option])).runs, tmp_path / "out") == []


def test_finished_runs_need_no_weights(study: Path, tmp_path: Path) -> None:
    runs = make_plan(load_study(str(study))).runs
    for run in runs:
        (tmp_path / run.id).mkdir()
        (tmp_path / run.id / "spec.toml").touch()
        (tmp_path / run.id / "done").write_text("{}")
    assert find_missing(runs, tmp_path) == []


def test_tuning_lists_missing_weights_and_starts_nothing(study: Path, tmp_path: Path) -> None:
    study.write_text(
        STUDY + '[seeds]\ntuning = 2\n[tune]\nspace."train.learning_rate" = { low = 1e-3, high = 1e-2 }\n'
    )
    found = flowrace("tune", study, "--out", tmp_path / "out", "--dry-run")
    assert found.exit_code == 0 and f"missing weights:\n  encoder {ENCODER}" in found.output
    found = flowrace("tune", study, "--out", tmp_path / "out")
    assert isinstance(found.exception, UserError) and ENCODER in str(found.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["local:tiny", "random:tiny", "cached:local:tiny"])
def test_encoder_without_a_weights_file_is_never_missing(name: str) -> None:
    check_encoder(Choice(name))


@pytest.mark.parametrize("name", [ENCODER, f"cached:{ENCODER}", "open_clip:ViT-B-16-SigLIP.webli"])
def test_encoder_is_missing_until_its_file_exists_or_a_download_is_allowed(name: str, tmp_path: Path) -> None:
    for choice in (Choice(name), Choice(name, weights=str(tmp_path / "absent"), download=True)):
        with pytest.raises(UserError, match=r"not on this machine|no such file"):
            check_encoder(choice)
    (tmp_path / "there.safetensors").touch()
    check_encoder(Choice(name, weights=str(tmp_path / "there.safetensors")))
    check_encoder(Choice(name, download=True))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("inception", "cannot read weights .*; download https://github.com/toshas"),
        ("inception-spatial", "download https://github.com/toshas"),
        ("dinov2-b", "download https://huggingface.co/timm/vit_base_patch14_dinov2"),
        ("clip-vit-l-336", "download https://huggingface.co/"),
        ("timm:resnet18.a1_in1k", "download https://huggingface.co/timm/resnet18.a1_in1k"),
        ("video:inception", "download https://github.com/toshas"),
        ("vggish", "needs its weights: download"),
        ("i3d:absent.pt", "cannot read weights absent.pt.*download"),
        ("torchscript:absent.ts?size=96", "cannot read weights absent.ts"),
        ("unheard", "unknown extractor"),
    ],
)
def test_missing_extractor_has_the_advice_for_its_network(name: str, sentence: str) -> None:
    with pytest.raises(MetricError, match=sentence):
        check_extractor(name)


@pytest.mark.parametrize(
    "name", ["inception", "dinov2-b", "timm:resnet18.a1_in1k", "vggish", "video:inception"]
)
def test_extractor_with_an_existing_file_is_not_missing(name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.touch()
    check_extractor(name, weights=file)
    with pytest.raises(MetricError, match="cannot read weights"):
        check_extractor(name, weights=tmp_path / "absent")


@pytest.mark.parametrize("name", ["local", "local-audio", "video:local"])
def test_extractor_trained_on_the_data_set_is_never_missing(name: str) -> None:
    check_extractor(name)


def test_codec_is_missing_without_the_files_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    spec = DataSpec(name="latents", codec="sd-vae@01234567", codec_weights=str(folder))
    with pytest.raises(UserError, match=r"codec 'sd-vae': .* has no config\.json"):
        check_codec(spec)
    folder.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (folder / name).touch()
    check_codec(spec)
    check_codec(DataSpec(name="latents", codec="identity"))
