"""Promise 3: our networks, losses and samplers reproduce the authors' released code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.cli.verify import verify as command
from harness.errors import UserError
from harness.flow import golden as verification
from harness.flow.golden import read, verify

FILES = [
    "sit_forward",
    "repa_loss",
    "samplers",
    "self_flow_step",
    "self_flow_sde",
    "sra_loss",
    "mmdit_repa_loss",
    "mmdit_samplers",
]


@pytest.mark.parametrize("name", FILES)
def test_outputs_equal_those_of_released_code(golden: Path, name: str) -> None:
    checks = verify(golden / f"{name}.safetensors")
    assert checks
    assert {check.tensor: check.max_abs_error for check in checks if not check.passed} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repa_loss", "self_flow_step", "self_flow_sde", "mmdit_repa_loss"])
def test_outputs_are_computed_on_the_given_device(
    golden: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, whose operators reject tensors of another one, and which has no values to check."""
    monkeypatch.setattr(verification, "check_given", lambda *_: None)
    file = read(golden / f"{name}.safetensors").on(torch.device("meta"))
    compute = next(compute for marks, compute in verification.KINDS if marks <= file.out.keys())
    found = compute(file)
    assert {(key, tensor.shape) for key, tensor in found.items()} >= {
        (key, tensor.shape) for key, tensor in file.out.items() if key in found
    }
    assert {tensor.device.type for tensor in found.values()} == {"meta"}


@pytest.mark.parametrize("name", FILES)
def test_table_in_the_docstring_describes_the_files(golden: Path, name: str) -> None:
    """A file has the listed inputs exactly, and at least the listed metadata and outputs."""
    head = next(line for line in verification.__doc__.splitlines() if "metadata, in addition" in line)
    starts = [head.index(word) for word in ("in.*", "metadata", "out.*")]
    lines = verification.__doc__.partition(head)[2].strip("\n").splitlines()
    rows = [[line[a:b].split() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    file = read(golden / f"{name}.safetensors")
    matching = [row for row in rows if file.out.keys() >= set(row[2])]
    # Files of an MMDiT differ in their inputs.
    given, meta, _ = next(row for row in matching if ("context" in row[0]) == file.has_text)
    assert set(given) == file.given.keys() - {"null_context"}
    assert {key for key in meta if key.isidentifier()} <= file.meta.keys()
    assert {"num_heads", "patch_size"} <= file.meta["arch"].keys()


@pytest.mark.parametrize("name", FILES)
def test_verify_fails_when_a_weight_changes(golden: Path, tmp_path: Path, name: str) -> None:
    from safetensors import safe_open

    source = golden / f"{name}.safetensors"
    tensors = load_file(source)
    block = "joint_blocks.0.x_block" if name.startswith("mmdit") else "blocks.0"
    tensors[f"weights.{block}.attn.qkv.weight"][0] += 0.1
    with safe_open(source, "pt") as file:
        save_file(tensors, tmp_path / "other-name.safetensors", metadata=file.metadata())
    assert not all(check.passed for check in verify(tmp_path / "other-name.safetensors"))


def test_command_prints_the_checks_as_json(golden: Path, tmp_path: Path) -> None:
    files = [str(golden / f"{name}.safetensors") for name in FILES]
    result = CliRunner().invoke(command, [*files, "--json"])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["passed"] and {Path(check["file"]).stem for check in found["checks"]} == set(FILES)


def test_verify_rejects_unreadable_and_incomplete_files(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("not one")
    with pytest.raises(UserError, match=r"cannot read .*safetensors"):
        verify(tmp_path / "text.safetensors")
    with pytest.raises(UserError, match="cannot read"):
        verify(tmp_path / "absent.safetensors")
    tensors = load_file(golden / "repa_loss.safetensors")
    del tensors["in.zs"]
    save_file(tensors, tmp_path / "lacking.safetensors", metadata={"arch": "{}"})
    with pytest.raises(UserError, match="lacks"):
        verify(tmp_path / "lacking.safetensors")


@pytest.mark.parametrize(
    "arch",
    ["[1, 2]", "3", '{"num_heads": "x", "patch_size": 2}', "[" * 5000],
)
def test_metadata_of_another_kind_is_a_user_error(tmp_path: Path, golden: Path, arch: str) -> None:
    tensors = load_file(golden / "sit_forward.safetensors")
    file = tmp_path / "changed.safetensors"
    save_file(tensors, file, metadata={"arch": arch})
    with pytest.raises(UserError, match=r"changed\.safetensors (lacks|has tensors or metadata)"):
        verify(file)


def test_tensor_of_another_shape_is_a_user_error(tmp_path: Path, golden: Path) -> None:
    source = golden / "sit_forward.safetensors"
    tensors, file = load_file(source), tmp_path / "changed.safetensors"
    with safe_open(source, "pt") as content:
        meta = content.metadata()
    save_file(tensors | {"in.x0": tensors["in.x0"][:, :1].contiguous()}, file, metadata=meta)
    with pytest.raises(UserError, match="do not fit this kind"):
        verify(file)


@pytest.mark.parametrize("name", ["projectors.0", "projector.weight"])
def test_weight_of_no_layer_of_the_projector_is_named(tmp_path: Path, golden: Path, name: str) -> None:
    source, file = golden / "repa_loss.safetensors", tmp_path / "changed.safetensors"
    with safe_open(source, "pt") as content:
        meta = content.metadata()
    save_file(load_file(source) | {f"weights.{name}": torch.zeros(2)}, file, metadata=meta)
    with pytest.raises(UserError, match="do not fit this kind: the projector's weights: "):
        verify(file)


@pytest.mark.parametrize(
    ("name", "field", "value", "reason"),
    [
        ("repa_loss", "encoder_depth", "7", "encoder_depth is 7, expected a layer from 1 to 6"),
        ("repa_loss", "coefficient", '"much"', "coefficient is 'much', expected a number"),
        ("repa_loss", "projector_dim", "8", "the projector's weights: "),
        ("samplers", "num_steps", "20", "in.sde_noise has noise of 7 steps, expected 19"),
        ("samplers", "cfg", "[1]", "cfg is "),
    ],
)
def test_metadata_out_of_range_is_named(
    tmp_path: Path, golden: Path, name: str, field: str, value: str, reason: str
) -> None:
    source, file = golden / f"{name}.safetensors", tmp_path / "changed.safetensors"
    with safe_open(source, "pt") as content:
        meta = content.metadata() | {field: value}
    save_file(load_file(source), file, metadata=meta)
    with pytest.raises(UserError, match=f"do not fit this kind: {reason}"):
        verify(file)


def test_error_of_ours_is_not_reported_as_one_of_the_file(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake in this code")

    monkeypatch.setattr(verification, "euler", broken)
    with pytest.raises(RuntimeError, match="a mistake in this code"):
        verify(golden / "samplers.safetensors")
