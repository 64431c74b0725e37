"""Weights are read from any wrapper, and nothing but tensors is ever unpickled."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.errors import UserError
from harness.exchange.reading import read_source
from harness.flow.golden import read


@pytest.fixture(scope="module")
def state(golden: Path) -> dict[str, Tensor]:
    return read(golden / "repa_loss.safetensors").weights


def prefixed(state: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {f"{start}{name}": value for name, value in state.items()}


WRAPPERS = {
    "plain": lambda state: state,
    "ema": lambda state: {"ema": state},
    "state_dict": lambda state: {"state_dict": prefixed(state, "model."), "epoch": 3},
    "distributed": lambda state: {"model": prefixed(state, "module.")},
    "compiled": lambda state: {"ema": prefixed(state, "_orig_mod.")},
    "compiled_blocks": lambda state: {
        name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in state.items()
    },
    "compiled_and_distributed": lambda state: {"model": prefixed(state, "_orig_mod.module.")},
    "averaged_by_torch": lambda state: {"ema": {"n_averaged": torch.tensor(3), **prefixed(state, "module.")}},
    "training": lambda state: {
        "model": {name: 0 * value for name, value in state.items()},
        "ema": state,
        "opt": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="SiT-XL/2", layers=[1, 2]),
        "steps": 400_000,
    },
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_pt_gives_the_tensors_in_any_wrapper(
    state: dict[str, Tensor], tmp_path: Path, wrapper: str, legacy: bool
) -> None:
    file = tmp_path / "weights.pt"
    torch.save(WRAPPERS[wrapper](state), file, _use_new_zipfile_serialization=not legacy)
    source = read_source(file)
    assert source.tensors.keys() == state.keys()
    assert all(torch.equal(source.tensors[name], state[name]) for name in state)
    assert source.step == (400_000 if wrapper == "training" else None)


def test_moving_average_is_read_unless_another_part_is_named(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    torch.save(WRAPPERS["training"](state), file)
    assert (read_source(file).part, read_source(file).others) == ("ema", ("model",))
    assert not read_source(file, "model").tensors["pos_embed"].any()
    with pytest.raises(UserError, match="known: ema, model"):
        read_source(file, "mode")


def test_several_networks_without_an_average_are_refused_with_the_choices(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"student": state, "teacher": state}, file)
    with pytest.raises(UserError, match=r"several networks \(student, teacher\); choose one with --part"):
        read_source(file)


@pytest.mark.parametrize("place", ["", "transformer"])
@pytest.mark.parametrize("name", ["diffusion_pytorch_model", "model"])
def test_folder_of_diffusers_or_accelerate_is_read(
    state: dict[str, Tensor], tmp_path: Path, place: str, name: str
) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    save_file(state, folder / f"{name}.safetensors")
    torch.save(state, folder / f"{name}.bin")
    (folder / "config.json").write_text('{"num_heads": 4}')
    source = read_source(tmp_path)
    assert source.tensors.keys() == state.keys() and source.config == {"num_heads": 4}


def test_shards_of_a_folder_are_joined(state: dict[str, Tensor], tmp_path: Path) -> None:
    names = sorted(state)
    table = {}
    for number, own in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in own}, tmp_path / f"model-{number}.safetensors")
        table |= dict.fromkeys(own, f"model-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert read_source(tmp_path).tensors.keys() == state.keys()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b"}}))
    with pytest.raises(UserError, match="outside its folder"):
        read_source(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_exactly(
    state: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    halves = {name: value.to(dtype) for name, value in state.items()}
    torch.save(halves, tmp_path / "weights.pt")
    source = read_source(tmp_path / "weights.pt")
    assert all(torch.equal(source.tensors[name].to(dtype), halves[name]) for name in halves)
    assert source.dtype == str(dtype).removeprefix("torch.")


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    # Any: what pickle asks for.
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.safetensors"])
def test_pickled_payload_is_refused_and_not_executed(
    state: dict[str, Tensor], tmp_path: Path, how: str, name: str
) -> None:
    mark, file = tmp_path / "executed", tmp_path / name
    content = {"ema": state, "args": Payload(mark)}
    if how == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    pickle.loads(pickle.dumps(Payload(tmp_path / "works")))
    with pytest.raises(UserError, match=r"never executed|cannot read"):
        read_source(file)
    assert (tmp_path / "works").exists() and not mark.exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file_is_refused(state: dict[str, Tensor], tmp_path: Path, name: str, share: float) -> None:
    file = tmp_path / name
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="cannot read"):
        read_source(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"conv1.weight": torch.zeros(2)}, "no weight is named x_embedder.proj.weight; it has conv1.weight"),
        ({"pos_embed.proj.weight": torch.zeros(2)}, "diffusers DiT, which predicts noise"),
        ({"shadow_params": [torch.zeros(2)]}, "moving average without names"),
        ({"epoch": 3}, "it has no tensors"),
        ({"x_embedder.proj.weight": torch.zeros(2, dtype=torch.float64)}, "as float64; expected float32"),
    ],
    ids=["other", "diffusers_dit", "shadow", "empty", "float64"],
)
def test_file_without_such_a_network_is_refused_with_what_it_holds(
    tmp_path: Path, content: dict[str, Any], reason: str
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=reason):
        read_source(tmp_path / "weights.pt")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_source(tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds no weights: expected"):
        read_source(tmp_path)
