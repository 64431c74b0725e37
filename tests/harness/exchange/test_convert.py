"""Released weights become ours and return bit for bit, and give the outputs of released code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.backbone.condition import Text
from harness.backbone.kinds import network_of
from harness.backbone.sizes import Size, name_of_size, size_named
from harness.backbone.times import Times
from harness.errors import UserError
from harness.exchange.convert import to_ours, to_released
from harness.exchange.import_run import convert
from harness.exchange.layouts import Found, find_layout, network_shapes
from harness.exchange.reading import read_source
from harness.exchange.verify import check_convention, released_velocity
from harness.flow.golden import read
from tests.support import plain_mmdit
from tests.support.released import FILES, OF_TEXT, released


@pytest.fixture(params=[*FILES, *OF_TEXT, "irepa", "reg"])
def weights(request: pytest.FixtureRequest) -> tuple[str, dict[str, Tensor], Found]:
    layout = request.param
    if layout not in FILES | OF_TEXT:
        return layout, *released(layout)
    name, by_names = (FILES | OF_TEXT)[layout]
    state = read(request.getfixturevalue("golden") / f"{name}.safetensors").weights
    return layout, state, find_layout(state, "auto" if by_names else layout)


def test_layout_and_size_are_found(weights: tuple[str, dict[str, Tensor], Found]) -> None:
    layout, state, found = weights
    assert found.layout == layout and found.shape == ((4, 32, 32) if layout in OF_TEXT else (4, 8, 8))
    if layout in OF_TEXT:
        assert found.text_dim == 768 and found.size == Size(3, 96, 3)
    else:
        assert found.classes == len(state["y_embedder.embedding_table.weight"]) - 1
    assert found.learn_sigma == (layout in ("sit", "self-flow"))
    assert network_shapes(found).keys() | set(found.projectors) == state.keys()


def test_import_then_export_gives_the_same_tensors(weights: tuple[str, dict[str, Tensor], Found]) -> None:
    layout, state, found = weights
    back = to_released(to_ours(state, found), found.config, layout, source=layout)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_import_equals_the_released_forward_pass(weights: tuple[str, dict[str, Tensor], Found]) -> None:
    _, state, found = weights
    model = network_of(found.config)
    model.load_state_dict(to_ours(state, found).network)
    assert check_convention(state, found, model) < 1e-5


def test_import_gives_the_velocity_of_the_golden_file(golden: Path) -> None:
    file = read(golden / "sit_forward.safetensors")
    found = find_layout(file.weights, "sit")
    model = network_of(found.config).eval()
    model.load_state_dict(to_ours(file.weights, found).network)
    v = model(file.given["x0"], Times.per_sample(1 - file.given["t"]), file.given["y"]).velocity
    assert (v + file.out["v"]).abs().max() < 1e-5


def test_another_convention_is_noticed(golden: Path) -> None:
    """The check can fail: a file that is read as the other layout gives other velocities."""
    state = read(golden / "repa_loss.safetensors").weights
    state = {name: value for name, value in state.items() if not name.startswith("projectors.")}
    right, wrong = find_layout(state, "repa"), find_layout(state, "sit")
    model = network_of(right.config)
    model.load_state_dict(to_ours(state, right).network)
    with pytest.raises(UserError, match="differs from the released one"):
        check_convention(state, wrong, model)


def test_weights_that_are_not_finite_are_refused(golden: Path) -> None:
    state, found = released("repa")
    state["blocks.1.mlp.fc1.bias"][3] = float("nan")
    model = network_of(found.config)
    model.load_state_dict(to_ours(state, found).network)
    with pytest.raises(UserError, match="not finite"):
        check_convention(state, found, model)


def test_weights_that_no_check_of_a_pass_reaches_are_refused_too(tmp_path: Path, golden: Path) -> None:
    """The null label is no input of the forward check."""
    state, found = released("repa")
    state["y_embedder.embedding_table.weight"][-1, 0] = float("inf")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"y_embedder.embedding_table.weight has values that are not finite"):
        convert(read_source(tmp_path / "w.safetensors"), "repa", heads=found.size.heads)


@pytest.mark.parametrize("target", FILES)
def test_export_into_another_layout_has_its_names_and_velocity(golden: Path, target: str) -> None:
    """The key list is that of the released network's golden file."""
    source = read(golden / "sra_loss.safetensors").weights
    found = find_layout(source)
    state = to_released(to_ours(source, found), found.config, target, source="sra")
    expected = read(golden / f"{FILES[target][0]}.safetensors").weights.keys()
    assert state.keys() == {name for name in expected if not name.startswith("projectors.")}
    again = find_layout(state, target)
    model = network_of(found.config)
    model.load_state_dict(to_ours(source, found).network)
    assert check_convention(state, again, model) < 1e-5


def test_network_without_projector_is_exported_with_a_head_of_zeros_where_released_code_has_one(
    golden: Path,
) -> None:
    source = read(golden / "sit_forward.safetensors").weights
    found = find_layout(source, "sit")
    state = to_released(to_ours(source, found), found.config, "self-flow", source="sit")
    expected = read(golden / "self_flow_step.safetensors").weights
    assert state.keys() == expected.keys()
    assert all(state[name].shape == expected[name].shape for name in state if "y_embedder" not in name)
    assert not state["projector.linear1.weight"].any()


def test_names_that_fit_several_layouts_are_refused_with_the_choices(golden: Path) -> None:
    state = read(golden / "sit_forward.safetensors").weights
    with pytest.raises(UserError, match="fit several layouts: choose --layout sit"):
        find_layout(state)


@torch.no_grad()
def test_text_network_of_another_size_equals_a_plain_restatement() -> None:
    """The check of an import and the network are compared with code that shares nothing with them."""
    sizes = {"depth": 4, "width": 64, "channels": 3, "patch": 2, "side": 8, "dim": 10}
    state = plain_mmdit.random_state(2, **sizes)
    found = find_layout(state)
    assert found.size == Size(4, 64, 2) and found.shape == (3, 8, 8) and found.text_dim == 10
    draws = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 3, 8, 8, generator=draws), torch.randn(2, 5, 10, generator=draws)
    t = torch.tensor([0.2, 0.9])
    expected = plain_mmdit.velocity(state, 2, x, t, context)[0]
    checked = released_velocity(state, found, x, t, Text(context))
    torch.testing.assert_close(checked, expected, rtol=0, atol=1e-5)
    model = network_of(found.config).eval()
    model.load_state_dict(to_ours(state, found).network)
    assert check_convention(state, found, model) < 1e-5


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("joint_blocks.1.context_block.attn.qkv.bias", None, "lack joint_blocks.1.context_block.attn.qkv"),
        ("joint_blocks.1.context_block.attn.proj.bias", (32,), "also have joint_blocks.1.context_block.attn"),
        ("joint_blocks.0.x_block.attn.ln_q.weight", (32,), "also have joint_blocks.0.x_block.attn.ln_q"),
        ("context_embedder.weight", None, "lack context_embedder.weight"),
        ("context_embedder.weight", (32,), "do not have layout 'mmdit'"),
        ("y_embedder.mlp.0.weight", (32, 8), "also have y_embedder.mlp.0.weight"),
    ],
)
def test_weights_of_text_networks_that_do_not_fit_are_named(
    name: str, shape: tuple[int, ...] | None, reason: str
) -> None:
    """Queries and keys that are normalised, and pooled text, are of other networks with these names."""
    sizes = {"depth": 2, "width": 32, "channels": 3, "patch": 2, "side": 8, "dim": 10}
    state = plain_mmdit.random_state(2, **sizes)
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    with pytest.raises(UserError, match=reason):
        find_layout(state, "mmdit")


def test_conditions_are_not_exchanged(golden: Path) -> None:
    labels = read(golden / "repa_loss.safetensors").weights
    text = read(golden / "mmdit_repa_loss.safetensors").weights
    for state, target, reason in ((labels, "mmdit", "labels"), (text, "repa", "texts")):
        found = find_layout(state)
        with pytest.raises(UserError, match=f"cannot hold this network: it has {reason}"):
            to_released(to_ours(state, found), found.config, target)


def test_dit_is_refused_with_the_reason(golden: Path) -> None:
    with pytest.raises(UserError, match="predicts noise at 1000 discrete steps"):
        find_layout(read(golden / "sit_forward.safetensors").weights, "dit")


# The change of one weight (None: it is left out), and the reason that names it.
MISFITS = [
    ("blocks.0.attn.qkv.bias", None, "lack blocks.0.attn.qkv.bias"),
    ("pos_embed", None, "lack pos_embed"),
    ("blocks.0.attn.q_norm.weight", (8,), "also have blocks.0.attn.q_norm"),
    ("blocks.1.mlp.fc1.bias", (3,), r"fc1.bias is \(3,\) instead of \(128,\)"),
    ("final_layer.linear.weight", (5, 32), "5 outputs; expected 16, or 32"),
    ("pos_embed", (1, 15, 32), "15 tokens, which form no square"),
    ("x_embedder.proj.weight", (32, 16), "expected a square convolution"),
    ("x_embedder.proj.weight", (), "do not have layout"),
    ("pos_embed", (1,), "do not have layout"),
    ("ap_head.linear1.bias", (64,), "also have ap_head.linear1.bias"),
]


@pytest.mark.parametrize(("name", "shape", "reason"), MISFITS)
def test_weights_that_do_not_fit_are_named(name: str, shape: tuple[int, ...] | None, reason: str) -> None:
    state, _ = released("repa")
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    with pytest.raises(UserError, match=reason):
        find_layout(state, "repa", heads=4)


def test_number_of_heads_is_asked_for_with_the_choices_where_shapes_leave_it_open() -> None:
    state, _ = released("repa")
    with pytest.raises(UserError, match="give --heads, one of 1, 2, 4"):
        find_layout(state, "repa")
    with pytest.raises(UserError, match="--heads 3 does not divide"):
        find_layout(state, "repa", heads=3)


def test_reg_with_a_position_of_its_token_is_refused() -> None:
    state, found = released("reg")
    state["pos_embed"][0, 0, 3] = 1
    with pytest.raises(UserError, match="a position for the extra token"):
        to_ours(state, found)


@pytest.mark.parametrize("size", [Size(28, 1152, 16), Size(6, 64, 4)])
def test_size_and_its_name_agree(size: Size) -> None:
    assert size_named(name_of_size(size)) == size
    assert size_named("6x64x5") is None and size_named("huge") is None
