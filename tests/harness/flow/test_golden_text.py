"""Golden files of a text-conditioned network of another size, made by a plain restatement of the released
code."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.errors import UserError
from harness.flow.golden import verify
from tests.support import plain_mmdit

SIZES = {"depth": 5, "width": 48, "channels": 3, "patch": 2, "side": 8, "dim": 10}
HEADS, LENGTH, TAP, STEPS = 6, 9, 3, 5
ARCH = {"depth": 5, "hidden": 48, "num_heads": HEADS, "patch_size": 2}


def draws(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def saved(file: Path, state: dict[str, Tensor], given: dict, out: dict, meta: dict[str, Any]) -> Path:
    parts = {"weights": state, "in": given, "out": out}
    tensors = {f"{part}.{name}": t.contiguous() for part, ts in parts.items() for name, t in ts.items()}
    save_file(tensors, file, metadata={name: json.dumps(value) for name, value in meta.items()})
    return file


@torch.no_grad()
def losses(file: Path) -> Path:
    state = plain_mmdit.random_state(6, **SIZES)
    x0, eps, context, zs, *mlp = draws(
        (2, 3, 8, 8),
        (2, 3, 8, 8),
        (2, LENGTH, 10),
        (2, 16, 14),
        (20, 48),
        (20,),
        (20, 20),
        (20,),
        (14, 20),
        (14,),
    )
    names = [f"projectors.0.{place}.{leaf}" for place in (0, 2, 4) for leaf in ("weight", "bias")]
    state |= {name: weight / 4 for name, weight in zip(names, mlp, strict=True)}
    t = torch.tensor([0.3, 0.8])
    x = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * eps
    v, hidden = plain_mmdit.velocity(state, HEADS, x, t, context, tap=TAP)
    projected = plain_mmdit.project(state, "projectors.0", hidden)
    flow = (v - (eps - x0)).square().flatten(1).mean(dim=1)
    align = -torch.cosine_similarity(projected, zs, dim=-1).mean()
    out = {
        "v": v,
        "projected": projected,
        "loss_flow_per_sample": flow,
        "loss_align": align,
        "loss_total": flow.mean() + 0.25 * align,
    }
    meta = {"arch": ARCH, "coefficient": 0.25, "encoder_depth": TAP, "z_dim": 14, "projector_dim": 20}
    return saved(file, state, {"x0": x0, "eps": eps, "t": t, "context": context, "zs": zs}, out, meta)


@torch.no_grad()
def samples(file: Path) -> Path:
    """Euler, Heun, Euler with guidance on an interval, and Euler-Maruyama, written out as plain loops."""
    state = plain_mmdit.random_state(7, **SIZES)
    z, context, null, noise = draws((2, 3, 8, 8), (2, LENGTH, 10), (LENGTH, 10), (STEPS - 1, 2, 3, 8, 8))
    cfg = {"scale": 2.0, "low": 0.2, "high": 0.7}

    def v(x: Tensor, t: float, text: Tensor = context) -> Tensor:
        return plain_mmdit.velocity(state, HEADS, x.float(), torch.full((2,), t), text)[0].double()

    def guided(x: Tensor, t: float) -> Tensor:
        if not cfg["low"] <= t <= cfg["high"]:
            return v(x, t)
        free = v(x, t, null.expand(2, -1, -1))
        return free + cfg["scale"] * (v(x, t) - free)

    euler = heun = euler_cfg = sde = z.double()
    grid = torch.linspace(1, 0, STEPS + 1, dtype=torch.float64).tolist()
    for t, after in itertools.pairwise(grid):
        euler = euler + (after - t) * v(euler, t)
        euler_cfg = euler_cfg + (after - t) * guided(euler_cfg, t)
        slope = v(heun, t)
        if after > 0:
            slope = (slope + v(heun + (after - t) * slope, after)) / 2
        heun = heun + (after - t) * slope
    grid = [*torch.linspace(1, 0.04, STEPS, dtype=torch.float64).tolist(), 0.0]
    for i, (t, after) in enumerate(itertools.pairwise(grid)):
        velocity = v(sde, t)
        sde = sde + (after - t) * (velocity + sde + (1 - t) * velocity)
        if after > 0:
            sde = sde + (2 * t * (t - after)) ** 0.5 * noise[i].double()
    out = {"euler": euler, "heun": heun, "euler_cfg": euler_cfg, "euler_maruyama": sde}
    given = {"z": z, "context": context, "null_context": null, "sde_noise": noise.double()}
    return saved(file, state, given, out, {"arch": ARCH, "num_steps": STEPS, "cfg": cfg})


@pytest.mark.parametrize("make", [losses, samples])
def test_files_of_other_sizes_pass(tmp_path: Path, make) -> None:
    checks = verify(make(tmp_path / "other.safetensors"))
    assert len(checks) >= 4
    assert {check.tensor: check.max_abs_error for check in checks if not check.passed} == {}


@pytest.mark.parametrize(
    "tensor",
    ["in.context", "weights.context_embedder.bias", "weights.joint_blocks.4.context_block.attn.qkv.bias"],
)
def test_verify_fails_when_the_text_changes(tmp_path: Path, tensor: str) -> None:
    file = losses(tmp_path / "golden.safetensors")
    tensors = load_file(file)
    # A shift of all channels would vanish in the layer norm, and the last block has no use for queries.
    tensors[tensor][..., -3:] += 0.1
    meta = {"arch": ARCH, "coefficient": 0.25, "encoder_depth": TAP, "z_dim": 14, "projector_dim": 20}
    save_file(tensors, file, metadata={name: json.dumps(value) for name, value in meta.items()})
    assert not all(check.passed for check in verify(file))


def test_text_of_another_width_is_named(tmp_path: Path) -> None:
    file = losses(tmp_path / "golden.safetensors")
    tensors = load_file(file)
    tensors["in.context"] = tensors["in.context"][..., :7].contiguous()
    meta = {"arch": ARCH, "coefficient": 0.25, "encoder_depth": TAP, "z_dim": 14, "projector_dim": 20}
    save_file(tensors, file, metadata={name: json.dumps(value) for name, value in meta.items()})
    with pytest.raises(UserError, match="has tensors or metadata that do not fit this kind: "):
        verify(file)
