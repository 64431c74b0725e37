"""Internal guidance: its loss and its sampling rule against released code, and its place in evaluations.

The expected numbers are those of CVL-UESTC/Internal-Guidance d048cc3 on a CPU, with weights and draws of
`filled`: `SiT(input_size=4, patch_size=2, in_channels=3, hidden_size=16, decoder_hidden_size=16, depth=3,
encoder_depth=2, num_heads=2, num_classes=4)` of SiT/models/sit.py, `IGLoss()(net, x, y)` of SiT/loss.py with
`torch.rand` and `torch.randn_like` replaced by t and eps, and `euler_maruyama_ig_sampler(net, z, y,
num_steps=4, ...)` of SiT/samplers.py with null label 4 in place of 1000.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.assembly.build import sampling_rule
from harness.backbone.sit import SiT, SiTConfig
from harness.backbone.sizes import Size
from harness.backbone.times import Times
from harness.config.backbone_spec import BackboneSpec
from harness.config.evaluation_spec import EvalSpec
from harness.costs.estimate import evaluation_flops
from harness.data.open import open_dataset
from harness.errors import UserError
from harness.evaluation.npz_export import Job
from harness.evaluation.protocol import protocol
from harness.exchange.convert import Weights, to_released
from harness.flow.batch import Batch, Draw
from harness.flow.samplers import Interval, euler_maruyama, plain, velocity_field
from harness.flow.sampling import Sampling, draw_batch, jointly
from harness.flow.student import Student
from harness.records.evaluations import Conditions
from methods.internal_guidance import InternalGuidance
from tests.support.commands import flowrace
from tests.support.filled import fill, filled
from tests.support.runs import tiny, trained

CONFIG = SiTConfig(Size(3, 16, 2), 2, (3, 4, 4), 4, outputs=(2,))
SHAPE = (2, 3, 4, 4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def net() -> SiT:
    network = SiT(CONFIG)
    fill(network)
    return network.eval()


@pytest.fixture(scope="module")
def method() -> InternalGuidance:
    return InternalGuidance.build(InternalGuidance.Config(layer=2), CONFIG)


def inputs() -> tuple[Batch, Draw]:
    batch = Batch(np.arange(2), filled("x", SHAPE), torch.tensor([1, 3]), torch.tensor([1, 3]))
    return batch, Draw(3 * filled("eps", SHAPE), Times.per_sample(torch.tensor([0.3, 0.8])))


def test_losses_equal_those_of_released_code(net: SiT, method: InternalGuidance) -> None:
    losses = method.loss(Student(net, None, CONFIG), *inputs())
    flow, inner = (1.4208704233169556 + 1.0968892574310303) / 2, (0.6332072615623474 + 1.0429301261901855) / 2
    assert losses.parts["flow"].item() == pytest.approx(flow, abs=1e-6)
    assert losses.parts["align"].item() == pytest.approx(inner, abs=1e-6)
    assert losses.total.item() == pytest.approx(1.6779142618179321, abs=1e-6)


@pytest.mark.parametrize(
    ("guidance", "first", "total"),
    [
        (
            {},
            [0.4414373659413351, 1.0782544633974471, 1.5451549678585843, 1.413328837602874],
            -5.38174287324491,
        ),
        (
            {"scale": 1.35, "high": 0.7},
            [0.46614264596161414, 1.1013563538756987, 1.5691097418501156, 1.4354190474547037],
            -5.154212735369872,
        ),
    ],
)
@torch.no_grad()
def test_samples_equal_those_of_released_code(
    net: SiT, method: InternalGuidance, guidance: dict[str, float], first: list[float], total: float
) -> None:
    """With w = 1.4, alone and with classifier-free guidance 1.35 below time 0.7."""
    y, noise = torch.tensor([1, 3]), [3 * filled(f"noise{i}", SHAPE) for i in range(3)]
    v = velocity_field(net, y, null=4, rule=method.velocity, own=Interval(1.4), **guidance)
    x = euler_maruyama(v, 3 * filled("z", SHAPE), 4, noise=lambda i, _: noise[i])
    assert x.flatten()[:4].tolist() == pytest.approx(first, abs=1e-5)
    assert x.sum().item() == pytest.approx(total, abs=1e-4)


@torch.no_grad()
def test_guidance_applies_only_inside_its_interval(net: SiT, method: InternalGuidance) -> None:
    x, y = filled("z", SHAPE), torch.tensor([1, 3])
    v = velocity_field(net, y, null=4, rule=method.velocity, own=Interval(1.4, 0.2, 0.7))
    unguided = velocity_field(net, y, null=4)
    assert torch.equal(v(x, 0.1), unguided(x, 0.1)) and torch.equal(v(x, 0.8), unguided(x, 0.8))
    assert not torch.allclose(v(x, 0.5), unguided(x, 0.5))


def test_samples_have_the_bits_of_the_plain_network_at_w_one(net: SiT, method: InternalGuidance) -> None:
    """A second final layer that nothing asks for changes no bit of the other one."""
    bare = SiT(SiTConfig(Size(3, 16, 2), 2, (3, 4, 4), 4))
    bare.load_state_dict({n: t for n, t in net.state_dict().items() if not n.startswith("final_layers.")})
    spec, y = EvalSpec(samples=2, sampler="heun", sampler_steps=3, guidance=1.5), torch.tensor([1, 3])

    def drawn(model: SiT, spec: EvalSpec, rule) -> Tensor:
        return draw_batch(model, Sampling(spec, CONFIG.shape, 4, CPU, rule=rule), np.arange(2), y)

    assert torch.equal(drawn(net, spec, method.velocity), drawn(bare, spec, plain))
    guided = spec.model_copy(update={"method_guidance": 1.4})
    assert not torch.equal(drawn(net, guided, method.velocity), drawn(bare, spec, plain))


def test_default_layer_is_eight_of_the_large_sizes() -> None:
    layers = {
        size: InternalGuidance.Config().resolved(BackboneSpec(size=size)).layer for size in ("B", "L", "XL")
    }
    assert layers == {"B": 4, "L": 8, "XL": 8}
    with pytest.raises(ValueError, match="layer = 12: is the last one"):
        InternalGuidance.Config(layer=12).resolved(BackboneSpec(size="B"))


def test_protocol_and_conditions_have_the_guidance_only_if_it_is_set() -> None:
    spec, dataset = tiny("method.name=internal_guidance"), open_dataset(tiny().data)
    fields = protocol(spec.eval, dataset, np.arange(9), {})
    assert not any(name.startswith("method_guidance") for name in fields)
    guided = tiny(
        "method.name=internal_guidance", "eval.method_guidance=1.4", "eval.method_guidance_high=0.7"
    )
    assert guided.id == spec.id and guided.legacy_id != spec.legacy_id
    assert tiny("method.name=internal_guidance", "eval.method_guidance_low=0.2").legacy_id == spec.legacy_id
    set_fields = protocol(guided.eval, dataset, np.arange(9), {})
    assert (set_fields["method_guidance"], set_fields["method_guidance_high"]) == (1.4, 0.7)
    ours, theirs = (Conditions.of_spec(one.eval.model_dump()) for one in (spec, guided))
    assert theirs.name([ours]) == "method_guidance=1.4, method_guidance_high=0.7" and ours.key != theirs.key
    # Recorded before methods could guide.
    assert Conditions.of_spec({}).key == "da4db54a"
    digests = {Job("", one.eval, (1, 8, 8), 10, ()).digest for one in (spec, guided)}
    assert len(digests) == 2


def test_method_without_guidance_rejects_its_scale() -> None:
    with pytest.raises(UserError, match=r"eval.method_guidance = 1.4, but flow does not guide"):
        tiny("eval.method_guidance=1.4")
    with pytest.raises(UserError, match=r"= 1.4, but internal_guidance is switched off"):
        tiny("method.name=internal_guidance", "method.coefficient=0", "eval.method_guidance=1.4")
    stack = ("method.name=repa+internal_guidance", "method.repa.encoder.name=random:small")
    with pytest.raises(UserError, match=r"= 1.4, but internal_guidance is switched off"):
        tiny(*stack, "method.internal_guidance.coefficient=0", "eval.method_guidance=1.4")
    assert tiny(*stack, "method.repa.coefficient=0", "eval.method_guidance=1.4")
    with pytest.raises(UserError, match=r"eval.method_guidance_low = 0.8 is above"):
        tiny(
            "method.name=internal_guidance",
            "eval.method_guidance_low=0.8",
            "eval.method_guidance_high=0.7",
        )


def test_guidance_costs_one_final_layer_a_pass() -> None:
    plain, guided = (
        evaluation_flops(tiny("method.name=internal_guidance", *more))
        for more in ((), ("eval.method_guidance=1.4",))
    )
    # 2 evaluations, 24 samples, 3 passes: 16 tokens of 64 channels to patches of 4 values, and modulation.
    assert guided - plain == 2 * 24 * 3 * 2 * (16 * 64 * 4 + 64 * 128)


def test_export_names_the_layer_that_released_layouts_lack(net: SiT) -> None:
    with pytest.raises(UserError, match="a further final layer at block 2, as method internal_guidance adds"):
        to_released(Weights(net.state_dict()), CONFIG, "sit")


@pytest.mark.usefixtures("quick_networks")
def test_run_is_evaluated_and_sampled_with_its_guidance(tmp_path: Path) -> None:
    """`flowrace sample` draws the same run with and without guidance, from one checkpoint."""
    record = trained(tiny("method.name=internal_guidance", "eval.method_guidance=1.4"), tmp_path)
    assert record.status == "done"
    evaluated = record.environment[0]["evaluation"]["protocol"]
    assert evaluated["method_guidance"] == 1.4
    files = [tmp_path / name for name in ("guided.npz", "plain.npz")]
    for file, scale in zip(files, (1.4, 1.0), strict=True):
        words = ["-n", "4", "--output", str(file), "--set", f"eval.method_guidance={scale}"]
        assert flowrace("sample", str(record.path), *words).exit_code == 0
    guided, plain_ = (np.load(file)["arr_0"] for file in files)
    assert guided.shape == plain_.shape and not np.array_equal(guided, plain_)


def test_rule_of_a_network_with_an_extra_token_gets_all_that_it_asks_for() -> None:
    net = SiT(SiTConfig(Size(3, 16, 2), 2, (3, 4, 4), 4, extra=5))
    x, times, y = torch.zeros(2, 48 + 5), Times.per_sample(torch.tensor([0.3, 0.8])), torch.tensor([1, 3])
    prediction = jointly(net, (3, 4, 4))(x, times, y, taps=(2,), heads=(1,))
    assert prediction.velocity.shape == x.shape
    assert list(prediction.hidden) == [2] and list(prediction.heads) == [1]


def test_rule_of_flow_is_the_network_itself() -> None:
    assert sampling_rule(tiny(), open_dataset(tiny().data)) is plain
