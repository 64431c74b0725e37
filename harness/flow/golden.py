"""Golden vectors: outputs of the authors' released code on given weights and draws, compared with ours.

A safetensors file holds `weights.*` under the released parameter names, `in.*`, `out.*`, and JSON metadata,
in which `arch` has `num_heads` and `patch_size`. Its tensors, not its name, determine its kind. To make one,
run the released code in float32, and save inputs and outputs with
`safetensors.torch.save_file(tensors, file, metadata)`.

    released       in.*                 metadata, in addition to arch                  out.*, at least
    REPA           x0 eps t y zs        coefficient encoder_depth z_dim projector_dim  projected loss_align
    MMDiT          x0 eps t context zs  coefficient encoder_depth z_dim projector_dim  projected loss_align
    Self-Flow      x0 eps t s mask y    gamma student_layer teacher_layer              student_hidden loss_rep
    SRA            x0 eps t u y         student_layer teacher_layer                    align_smooth_l1
    REPA sampler   z y sde_noise        num_steps cfg (null_label, scale, low, high)   euler euler_maruyama
    MMDiT sampler  z context sde_noise  num_steps cfg (scale, low, high)               euler euler_maruyama
    Self-Flow SDE  z y sde_noise        num_steps                                      samples
    SiT            x0 t y                                                              v

Files of an MMDiT have text features `context` (B, L, D), and samplers also `null_context` (L, D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.backbone.condition import Condition, Text
from harness.backbone.network import Backbone
from harness.backbone.released_weights import load_published, projector_state
from harness.backbone.times import Times
from harness.backbone.tokens import Part
from harness.config import registry
from harness.errors import UserError
from harness.files.parse import parse_json
from harness.flow.batch import Batch, Draw, View
from harness.flow.golden_checks import Fields, architecture, check_given, check_meta, misfit, null_label
from harness.flow.path import interpolate
from harness.flow.samplers import euler, euler_maruyama, heun, velocity_field
from harness.flow.student import Student

TOLERANCE = 1e-5
CPU = torch.device("cpu")


class Check(NamedTuple):
    """The comparison of one output tensor."""

    tensor: str
    max_abs_error: float

    @property
    def passed(self) -> bool:
        # False for NaN.
        return self.max_abs_error <= TOLERANCE


@dataclass(frozen=True)
class Golden:
    """The content of a golden file."""

    path: Path
    weights: dict[str, Tensor]
    given: dict[str, Tensor]
    out: dict[str, Tensor]
    meta: dict[str, Any]
    device: torch.device = CPU

    def on(self, device: torch.device) -> Golden:
        """Return the file with its inputs and its network on a device."""
        given = Fields(self.path, "in.", {name: t.to(device) for name, t in self.given.items()})
        return replace(self, given=given, device=device)

    @property
    def has_text(self) -> bool:
        return "context" in self.given

    @property
    def condition(self) -> Condition:
        """Labels, or texts whose tokens are all attended to."""
        return Text(self.given["context"]) if self.has_text else self.given["y"]

    def model(self, layout: str) -> Backbone:
        """Return the network with the weights of the file."""
        heads, patch = architecture(self.path, self.meta)
        try:
            model = load_published(self.weights, layout, heads=heads, patch=patch).eval()
        # What reading shapes of weights of another rank or size raises.
        except (ArithmeticError, AttributeError, IndexError, TypeError) as error:
            raise misfit(self.path, str(error)) from error
        check_meta(self.path, self.meta, model.config.size.depth)
        check_given(self.path, self.given, self.meta, model.config)
        return model.to(self.device)

    def batch(self, features: Tensor | None = None) -> Batch:
        """Return the inputs as a batch, with encoder features if given."""
        y, label = self.condition, torch.zeros(len(self.given["x0"]), dtype=torch.int64)
        views = () if features is None else (View(features),)
        return Batch(np.arange(len(label)), self.given["x0"], y, self.given.get("y", label), views=views)


@torch.no_grad()
def verify(path: Path, device: torch.device = CPU) -> list[Check]:
    """Return the largest absolute error of every `out.*` tensor of a file on a device, sorted by name.

    Raises `UserError` if the file cannot be read or is of an unknown kind.
    """
    golden = read(path).on(device)
    compute = next((compute for marks, compute in KINDS if marks <= golden.out.keys()), None)
    if compute is None:
        raise UserError(
            f"{path} has {', '.join(sorted(golden.out)) or 'no out.*'}: not a known kind of golden file"
        )
    computed = compute(golden)
    return [Check(name, _error(computed.get(name), golden.out[name])) for name in sorted(golden.out)]


def read(path: Path) -> Golden:
    """Read a golden file; raises `UserError` if it is not a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            meta = {name: _json(text) for name, text in (file.metadata() or {}).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path} as safetensors: {error}") from error

    def part(prefix: str) -> dict[str, Tensor]:
        found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        return Fields(path, prefix, found)

    return Golden(path, dict(part("weights.")), part("in."), part("out."), Fields(path, "", meta))


def _sit_forward(golden: Golden) -> dict[str, Tensor]:
    # SiT's time runs the other way: t = 1 is data, velocity = data - noise.
    times = Times.per_sample(1 - golden.given["t"])
    return {"v": -golden.model("sit")(golden.given["x0"], times, golden.given["y"]).velocity}


def _repa(golden: Golden) -> dict[str, Tensor]:
    meta, given = golden.meta, golden.given
    settings = {"coefficient": meta["coefficient"], "layer": meta["encoder_depth"]}
    layout = "mmdit" if golden.has_text else "repa"
    student, method = _method(
        golden, layout, "repa", settings, encoder_dims=(meta["z_dim"],), width=meta["projector_dim"]
    )
    batch = golden.batch(given["zs"])
    draw = Draw(given["eps"], Times.per_sample(given["t"]))
    losses = method.loss(student, batch, draw)
    prediction = student(_x(golden, draw), draw.times, batch.y, taps=(meta["encoder_depth"],))
    return {
        "v": prediction.velocity,
        "projected": method.projectors[0](prediction.hidden[meta["encoder_depth"]]),
        "loss_flow_per_sample": _per_sample(prediction.velocity, golden),
        "loss_align": losses.parts["align"],
        "loss_total": losses.total,
    }


def _self_flow(golden: Golden) -> dict[str, Tensor]:
    meta, given = golden.meta, golden.given
    layers = {"student_layer": meta["student_layer"], "teacher_layer": meta["teacher_layer"]}
    student, method = _method(golden, "self-flow", "self_flow", {"gamma": meta["gamma"], **layers})
    cleaner = torch.minimum(given["t"], given["s"])
    draw = Draw(
        given["eps"], Times.dual(given["t"], given["s"], given["mask"]), extra={"cleaner": cleaner[:, None]}
    )
    batch = golden.batch()
    losses = method.loss(student, batch, draw)
    prediction = student(_x(golden, draw), draw.times, batch.y, taps=(meta["student_layer"],))
    hidden = prediction.hidden[meta["student_layer"]]
    clean = Draw(given["eps"], Times.per_sample(cleaner))
    return {
        "v": prediction.velocity,
        "tau": draw.times.per_token_levels(),
        "student_hidden": hidden,
        "student_projected": method.projector(hidden),
        "teacher_hidden": student.teach(_x(golden, clean), clean.times, batch.y, layer=meta["teacher_layer"]),
        "loss_flow": losses.parts["flow"],
        "loss_rep": losses.parts["align"],
        "loss_total": losses.total,
    }


def _sra(golden: Golden) -> dict[str, Tensor]:
    # As in the file, smooth-L1 is averaged, and the cosine over tokens is not.
    given, found = golden.given, {}
    layers = {"student_layer": golden.meta["student_layer"], "teacher_layer": golden.meta["teacher_layer"]}
    for name, similarity in (
        ("align_smooth_l1", "smooth_l1"),
        ("align_cos_over_tokens_dim1", "cosine_tokens"),
    ):
        student, method = _method(golden, "sra", "sra", {**layers, "similarity": similarity})
        cleaner = (given["t"] - given["u"]).clamp(0, 1)
        draw = Draw(given["eps"], Times.per_sample(given["t"]), extra={"cleaner": cleaner})
        x_t = _x(golden, draw)
        prediction = student(x_t, draw.times, given["y"], taps=(layers["student_layer"],))
        found[name] = method.gap(student, golden.batch(), draw, prediction)
    found["align_smooth_l1"] = found["align_smooth_l1"].mean()
    return {**found, "loss_flow_per_sample": _per_sample(prediction.velocity, golden)}


def _samplers(golden: Golden) -> dict[str, Tensor]:
    model = golden.model("mmdit" if golden.has_text else "repa")
    z, y, steps, cfg = golden.given["z"], golden.condition, golden.meta["num_steps"], golden.meta["cfg"]
    null = (
        Text(golden.given["null_context"][None])
        if golden.has_text
        else null_label(golden.path, cfg, model.config.classes)
    )
    v = velocity_field(model, y, null=null)
    guided = velocity_field(model, y, null=null, scale=cfg["scale"], low=cfg["low"], high=cfg["high"])
    noise = golden.given["sde_noise"]
    return {
        "euler": euler(v, z, steps),
        "heun": heun(v, z, steps),
        "euler_cfg": euler(guided, z, steps),
        "euler_maruyama": euler_maruyama(v, z, steps, noise=lambda i, _: noise[i]),
    }


def _self_flow_sde(golden: Golden) -> dict[str, Tensor]:
    v = velocity_field(golden.model("self-flow"), golden.given["y"], null=0)
    noise, steps = golden.given["sde_noise"], golden.meta["num_steps"]
    samples = euler_maruyama(v, golden.given["z"], steps, noise=lambda i, _: noise[i], dtype=torch.float32)
    return {"samples": samples}


KINDS: list[tuple[set[str], Callable[[Golden], dict[str, Tensor]]]] = [
    ({"projected", "loss_align"}, _repa),
    ({"student_hidden", "loss_rep"}, _self_flow),
    ({"align_smooth_l1"}, _sra),
    ({"euler", "euler_maruyama"}, _samplers),
    ({"samples"}, _self_flow_sde),
    ({"v"}, _sit_forward),
]


def _method(
    golden: Golden,
    layout: str,
    name: str,
    settings: dict[str, Any],
    encoder_dims: tuple[int, ...] = (),
    width: int = 0,
) -> tuple[Student, Any]:
    """Return a method with the file's projector, and a student whose teacher has the same weights."""
    model = golden.model(layout)
    cls = registry.load("method", name)
    try:
        config = cls.Config(**settings, **({"projector_width": width} if width else {}))
    except ValidationError as error:
        raise misfit(golden.path, str(error).splitlines()[-1].strip()) from error
    method = cls.build(config, model.config, encoder_dims=encoder_dims)
    projector = method.projectors[0] if encoder_dims else method.projector
    try:
        projector.load_state_dict(projector_state(golden.weights))
    except RuntimeError as error:
        raise misfit(
            golden.path, f"the projector's weights: {str(error).splitlines()[-1].strip()}"
        ) from error
    return Student(model, model, model.config), method.to(golden.device)


def _x(golden: Golden, draw: Draw) -> Tensor:
    x0, patch = golden.given["x0"], golden.meta["arch"]["patch_size"]
    return interpolate(x0, draw.noise, draw.times, Part(tuple(x0.shape[1:]), (patch, patch)))


def _per_sample(velocity: Tensor, golden: Golden) -> Tensor:
    return (velocity - (golden.given["eps"] - golden.given["x0"])).square().flatten(1).mean(dim=1)


def _error(computed: Tensor | None, expected: Tensor) -> float:
    if computed is None or computed.shape != expected.shape:
        return float("inf")
    return (computed.cpu().double() - expected.double()).abs().max().item()


def _json(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text
