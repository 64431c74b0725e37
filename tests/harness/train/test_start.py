"""Promise 7: a run continues only with the weights that it began with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from harness.config.spec import RunSpec
from harness.data.pin import pinned
from harness.errors import UserError
from harness.records.record import Record
from harness.runtime.environment import describe
from harness.train.start import check_same_weights, weights_at_start
from metrics.files.hashing import sha256_of
from tests.support.runs import tiny, trained

pytestmark = pytest.mark.usefixtures("quick_networks")


def weights_file(path: Path, seed: int) -> Path:
    """Write weights of timm's smallest ViT; all files have the same size and modification time."""
    draw = torch.Generator().manual_seed(seed)
    state = timm.create_model("test_vit", pretrained=False).state_dict()
    save_file({name: torch.randn(t.shape, generator=draw) * 0.05 for name, t in state.items()}, path)
    os.utime(path, ns=(10**18, 10**18))
    return path


def with_encoder(file: Path, *more: str) -> RunSpec:
    encoder = ("method.encoder.name=timm:test_vit", f"method.encoder.weights={file}")
    return tiny("method.name=repa", "train.steps=2", "eval.every=2", *encoder, *more)


def test_run_refuses_weights_that_were_swapped_between_two_starts(tmp_path: Path) -> None:
    file = weights_file(tmp_path / "vit.safetensors", seed=0)
    spec, before = with_encoder(file), sha256_of(file)
    record = trained(spec, tmp_path / "runs")
    (record.path / "done").unlink()
    weights_file(file, seed=1)
    with pytest.raises(UserError) as refused:
        trained(spec, tmp_path / "runs")
    message = str(refused.value)
    assert "the weights of the encoder 'timm:test_vit' have changed" in message
    assert before in message and sha256_of(file) in message
    assert "set method.encoder.weights to the original file, or use another --out" in message
    weights_file(file, seed=0)
    assert trained(spec, tmp_path / "runs").status == "done"


def test_id_depends_on_the_encoders_weights_and_not_on_their_place(tmp_path: Path) -> None:
    first, copy = (weights_file(tmp_path / name, seed=0) for name in ("a.safetensors", "b.safetensors"))
    other = weights_file(tmp_path / "c.safetensors", seed=1)
    ids = [pinned(with_encoder(file)).id for file in (first, copy, other)]
    assert ids[0] == ids[1] != ids[2]
    # Any: the config of REPA, whose class this test does not import.
    method: Any = pinned(with_encoder(first)).method
    assert method.encoder.content == sha256_of(first)
    further = f'method.further=[{{name="timm:test_vit", weights="{other}"}}]'
    method = pinned(with_encoder(first, further)).method
    assert method.further[0].content == sha256_of(other)


def test_id_stays_that_of_earlier_versions_without_a_weights_file(tmp_path: Path) -> None:
    file = weights_file(tmp_path / "vit.safetensors", seed=0)
    for spec in (
        tiny(),
        tiny("method.name=repa", "method.encoder.name=local:tiny"),
        with_encoder(tmp_path / "missing.safetensors"),
        with_encoder(file, f"method.encoder.sha256={sha256_of(file)}"),
    ):
        assert pinned(spec).id == spec.id


def test_planned_weights_that_were_swapped_are_refused(tmp_path: Path) -> None:
    file = weights_file(tmp_path / "vit.safetensors", seed=0)
    spec, before = pinned(with_encoder(file)), sha256_of(file)
    weights_file(file, seed=1)
    message = (
        f"holds other weights than this spec was planned with: sha256 {sha256_of(file)}, expected {before}"
    )
    with pytest.raises(UserError, match=message):
        pinned(spec)


HERE: dict[str, Any] = {
    name: value
    for name, value in describe(torch.device("cpu"), 1).items()
    if name in ("host", "cpu_capability", "packages")
}


# Any: one start in environment.json.
def recorded(path: Path, *starts: dict) -> Record:
    (path / "environment.json").write_text(json.dumps(starts))
    if not (path / "spec.toml").exists():
        (path / "spec.toml").write_text(tiny().to_toml())
    return Record(path)


@pytest.mark.parametrize(
    ("what", "restore"),
    [
        ("codec", "set data.codec_weights to the original file"),
        ("metric network 'inception'", "set eval.weights to the original file"),
        ("metric network 'local'", "set FLOWRACE_CACHE to the cache that holds them"),
        ("encoder 'timm:a'", "set method.encoder.weights to the original file"),
        ("encoder 'cached:local:small'", "set FLOWRACE_CACHE to the cache that holds them"),
    ],
)
def test_changed_weights_are_refused_by_name(tmp_path: Path, what: str, restore: str) -> None:
    networks = {name: {"sha256": "old"} for name in ("inception", "local")}
    encoders = [{"name": name, "sha256": "old"} for name in ("timm:a", "cached:local:small")]
    evaluation = {"protocol": {"extractors": networks, "codec": "old"}}
    first = {"evaluation": evaluation, "encoders": encoders, **HERE}
    record = recorded(tmp_path, first, {"encoders": []})
    check_same_weights(record, {what: "old"}, pytest.fail)
    with pytest.raises(UserError, match=f"the weights of the {what} have changed .*old, now new") as refused:
        check_same_weights(record, {what: "new"}, pytest.fail)
    assert restore in str(refused.value)


def test_changed_weights_of_a_stack_name_the_term(tmp_path: Path) -> None:
    spec = tiny("method.name=repa+tread", "method.repa.encoder.name=timm:test_vit")
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    record = recorded(tmp_path, {"encoders": [{"name": "timm:test_vit", "sha256": "old"}], **HERE})
    with pytest.raises(UserError, match=r"set method\.repa\.encoder\.weights to the original"):
        check_same_weights(record, {"encoder 'timm:test_vit'": "new"}, pytest.fail)


def test_weights_are_compared_with_the_first_start_that_names_them(tmp_path: Path) -> None:
    def start(**sha256: str) -> dict:
        return {"evaluation": {"protocol": {"extractors": {k: {"sha256": v} for k, v in sha256.items()}}}}

    record = recorded(tmp_path, {}, start(a="1"), start(a="2", b="3"))
    assert weights_at_start(record) == {"metric network 'a'": "1", "metric network 'b'": "3"}
    # Records of earlier versions name no weights.
    check_same_weights(recorded(tmp_path, {"data_fingerprint": "x"}), {"codec": "any"}, pytest.fail)


@pytest.mark.parametrize("field", ["host", "cpu_capability", "packages"])
def test_networks_trained_on_another_machine_may_differ(tmp_path: Path, field: str) -> None:
    """Training rounds differently there. Weights from a file are the same everywhere."""
    networks = {name: {"sha256": "old"} for name in ("inception", "local")}
    start = {"evaluation": {"protocol": {"extractors": networks}}, **HERE, field: {}}
    record, notes = recorded(tmp_path, start), list[str]()
    check_same_weights(record, {"metric network 'local'": "new"}, notes.append)
    assert len(notes) == 1 and "on another machine, because they are trained on the data" in notes[0]
    with pytest.raises(UserError, match="inception"):
        check_same_weights(record, {"metric network 'inception'": "new"}, notes.append)
