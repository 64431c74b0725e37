"""Studies on captions that need data which may be missing: planned with their cost, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.assembly.build import backbone_config
from harness.assembly.resolve import load_spec
from harness.backbone.mmdit import MMDiTConfig
from harness.data.open import outlined
from harness.errors import UserError
from tests.support.commands import flowrace


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_coco256_is_repas_table_12() -> None:
    """REPA's paper and train_t2i.py: depth 24, width 768, CLIP-L on 77 tokens, 150K steps of 256."""
    spec = load_spec("coco256", ["method.name=repa"])
    config = backbone_config(spec, outlined(spec.data))
    assert isinstance(config, MMDiTConfig)
    assert (config.size.depth, config.size.width, config.size.heads, config.patch) == (24, 768, 24, 2)
    assert (config.text.dim, config.text.length, config.shape) == (768, 77, (4, 32, 32))
    train, evaluation = spec.train, spec.eval
    assert (train.steps, train.batch_size, train.learning_rate, train.label_drop) == (150_000, 256, 1e-4, 0.1)
    assert (evaluation.samples, evaluation.guidance, evaluation.sampler_steps) == (40_192, 2.0, 250)
    assert (spec.backbone.initial, spec.text.padding, spec.time.kind) == ("released", "attended", "uniform")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "named"),
    [
        ("coco256", ["train/0_0.npy", "empty_context.npy", "flowrace data import", "model.safetensors"]),
        ("cc12m256", ["KEY.jpg and KEY.txt", "flowrace data encode", "open_clip_model.safetensors"]),
    ],
)
def test_study_is_planned_without_data_and_names_each_missing_file(
    study: str, named: list[str], tmp_path: Path
) -> None:
    words = ("sweep", study, "--out", tmp_path / "out")
    found = flowrace(*words, "--dry-run", "--json")
    assert found.exit_code == 0
    plan = json.loads(found.output)
    assert len(plan["runs"]) == 9 and all(run["flops"] > 5e18 for run in plan["runs"])
    missing = {one["kind"]: one for one in plan["missing_weights"]}
    assert missing["data"]["type"] == "--set data.root=FOLDER"
    reasons = " ".join(one["reason"] for one in plan["missing_weights"])
    assert all(name in reasons for name in named)
    refused = flowrace(*words, "--no-track")
    assert isinstance(refused.exception, UserError) and "data.root is empty" in str(refused.exception)
    assert not (tmp_path / "out").exists()


def test_emoji_states_which_data_it_needs() -> None:
    found = flowrace("sweep", "emoji", "--dry-run")
    assert isinstance(found.exception, UserError)
    assert "the data are 3,771 Noto Color Emoji" in str(found.exception)


@pytest.mark.slow
def test_emoji_is_planned_with_its_data_and_asks_for_mobilenet(shared_data: Path) -> None:
    where = f"data.root={shared_data / 'emoji' / 'emoji.parquet'}"
    found = flowrace("sweep", "emoji", "--dry-run", "--json", "--set", where)
    assert found.exit_code == 0
    (missing,) = json.loads(found.output)["missing_weights"]
    assert missing["kind"] == "encoder" and "TorchScript file" in missing["reason"]
    assert missing["type"].startswith("--set methods.repa.encoder.weights=FILE")
