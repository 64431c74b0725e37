"""Runs on texts keep the promises of runs on labels: bits, continuation, processes, cost, exchange."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner
from safetensors.torch import load_file

from harness.assembly.build import backbone_config
from harness.backbone.mmdit import MMDiT, MMDiTConfig
from harness.backbone.times import Times
from harness.cli.main import cli
from harness.config.spec import RunSpec
from harness.costs.estimate import estimate
from harness.costs.flops import count_spec
from harness.costs.memory import footprint
from harness.data.open import open_dataset, split
from harness.errors import UserError
from harness.flow.batch import Batch
from harness.flow.samplers import euler, velocity_field
from harness.probing.layers import probe
from harness.records import checkpoint, checkpoint_files
from harness.records.record import DONE, Record
from harness.runtime.distributed import World
from harness.runtime.fsdp import full_tensor, shard_like
from harness.runtime.random_streams import Streams
from harness.train.loop import train
from harness.train.objective import Objective
from harness.train.progress import Quiet
from harness.train.state import Run, build_run
from harness.train.trained_run import checkpoint_of_run, load_ema
from tests.support import plain_mmdit
from tests.support.allocated import allocated
from tests.support.forked import in_world
from tests.support.runs import TINY, events, losses, tiny, trained, weights
from tests.support.text import texts
from tests.support.text_runs import SHAPE, captions, step_of_text, tiny_text, use_captions

SELF_FLOW = ("method.name=self_flow", "train.keep_checkpoints=9", "eval.guidance=2.0")
pytestmark = pytest.mark.usefixtures("quick_networks")


@pytest.fixture(scope="module", autouse=True)
def with_captions():
    with pytest.MonkeyPatch.context() as patch:
        use_captions(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Return a finished run of Self-Flow on captions."""
    return trained(tiny_text(*SELF_FLOW), tmp_path_factory.mktemp("runs"))


def test_run_on_captions_trains_and_is_evaluated(run: Record) -> None:
    assert len(losses(run)) == 12 and len(run.of("eval")) == 2
    final = checkpoint.load(checkpoint_files.checkpoints(run.path / "checkpoints")[-1])
    first = checkpoint.load(checkpoint_files.checkpoints(run.path / "checkpoints")[0])
    for name in ("model.context_embedder.weight", "model.blocks.3.context_block.attn.qkv.weight"):
        assert not torch.equal(final.tensors[name], first.tensors[name])


def test_run_continued_from_a_checkpoint_has_the_same_bits(run: Record, tmp_path: Path) -> None:
    """The record ends after step 4, as if the process had been killed in step 5 to 8."""
    copy = tmp_path / run.path.name
    shutil.copytree(run.path, copy)
    (copy / DONE).unlink()
    for file in checkpoint_files.checkpoints(copy / "checkpoints"):
        if checkpoint_files.step_of(file) > 4:
            file.unlink()
    again = Record(train(tiny_text(*SELF_FLOW), tmp_path, Quiet()))
    assert again.path == copy and weights(again) == weights(run)
    assert [e for e in events(again) if e["kind"] == "train"] == [
        e for e in events(run) if e["kind"] == "train"
    ]


def test_samples_follow_the_caption(run: Record) -> None:
    """Another caption with the same noise gives another velocity, and dropping captions gives that of the
    empty one."""
    spec = tiny_text(*SELF_FLOW)
    model = load_ema(checkpoint_of_run(run.path, None), spec, open_dataset(spec.data), torch.device("cpu"))
    x, times = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((10,), 0.5)
    velocity = [
        model(x, Times.per_sample(times), y).velocity
        for y in (
            captions()[range(10)],
            captions()[[10] * 10],
            captions()[range(10)].where(torch.ones(10, dtype=torch.bool), captions()[[10]]),
        )
    ]
    assert not torch.allclose(velocity[0], velocity[1]) and torch.equal(velocity[1], velocity[2])


def gathered(shard: bool, size: int, file: Path | None) -> dict[str, torch.Tensor]:
    """Train three steps on a rank's share of each batch, and return the losses and all weights."""
    spec = tiny_text("method.name=self_flow", f"runtime.shard={shard}".lower())
    world = World(dist.get_rank() if size > 1 else 0, size, torch.device("cpu"))
    dataset = open_dataset(spec.data)
    run: Run = build_run(
        spec, dataset, split(dataset, 0.5), world.device, world.mesh() if shard and size > 1 else None
    )
    objective, share, found = world.wrap(Objective(run), changing=False), 8 // size, {}
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            # Zero modulation would hide the text.
            noise = 0.05 * Streams(1).normal(name, [0], parameter.shape)[0]
            parameter.add_(shard_like(noise, parameter))
    for number in range(3):
        index, x0, y, labels = step_of_text(spec, 8, 8 * number)
        own = slice(world.rank * share, (world.rank + 1) * share)
        batch = Batch(index[own], x0[own], y[own], labels[own], number + 1, given=y[own])
        total, _ = objective(batch, run.method.draw(Streams(0), batch))
        total.backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        found[f"loss {number}"] = world.mean(total.detach().clone())
    found |= {name: full_tensor(p.detach()).clone() for name, p in run.model.named_parameters()}
    with torch.no_grad():
        # Shared texts go through the gathered weights of the embedding and of the first block.
        field = velocity_field(run.model, y[:4], null=captions()[[10]], scale=2.0)
        found["samples"] = euler(field, x0[:4], 2)
    if file is not None and world.main:
        torch.save(found, file)
    return found


def ranks(folder: Path, kinds: tuple[bool, ...]) -> None:
    dist.init_process_group("gloo")
    for shard in kinds:
        gathered(shard, 2, folder / f"{shard}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "kinds",
    [pytest.param((False,), id="replicated"), pytest.param((True,), id="sharded", marks=pytest.mark.slow)],
)
def test_two_processes_equal_one(tmp_path: Path, kinds: tuple[bool, ...]) -> None:
    """DDP, and FSDP2 with the text stream's weights gathered block by block."""
    one = gathered(False, 1, None)
    in_world(2, partial(ranks, tmp_path, kinds))
    for shard in kinds:
        two = torch.load(tmp_path / f"{shard}.pt", weights_only=True)
        assert two.keys() == one.keys()
        for name, value in one.items():
            expected, found = value, two[name]
            if name.endswith("qkv.bias"):
                # Softmax ignores the bias of keys, so its gradient is rounding, which Adam enlarges.
                expected, found = (torch.stack(t.chunk(3)[::2]) for t in (expected, found))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6, msg=name)


def test_flops_of_a_pass_are_those_on_paper() -> None:
    """2 per multiply-add. The last block computes keys and values of the text, and queries of the image."""
    spec = tiny_text("method.name=flow", "eval.samples=2", "eval.sampler=euler", "eval.sampler_steps=1")
    depth, D, T, L, patch = 4, 64, 16, SHAPE.length, 4
    S = T + L
    # Modulation of both streams, then qkv, projection and MLP per token, and scores and sums.
    block = 2 * 6 * D * D + S * 12 * D * D + 2 * S * S * D
    last = (6 + 2) * D * D + (12 * T + 2 * L) * D * D + 2 * T * S * D
    inputs = 256 * D + D * D + L * SHAPE.dim * D + T * patch * D
    outputs = 2 * D * D + T * D * patch
    expected = 2 * ((depth - 1) * block + last + inputs + outputs)
    # Evaluations after steps 6 and 12, of two samples each.
    assert estimate(spec).evaluation_flops == 4 * expected


def test_cost_of_a_run_counts_the_text_stream() -> None:
    spec, labels = tiny_text("method.name=flow"), tiny("method.name=flow")
    cost, memory = count_spec(spec), footprint(spec)
    assert cost.parameters == sum(p.numel() for p in MMDiT(config_of(spec)).parameters())
    assert memory.weights == 4 * cost.parameters and memory.activations > footprint(labels).activations


def config_of(spec: RunSpec) -> MMDiTConfig:
    config = backbone_config(spec, open_dataset(spec.data))
    assert isinstance(config, MMDiTConfig)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [True, False])
def test_memory_estimate_equals_the_allocator(keeps: bool) -> None:
    """The allocator counts a real step of flow matching, which is written out here."""
    spec = tiny_text(
        "backbone.size=micro",
        "train.batch_size=32",
        "method.name=flow",
        f"runtime.checkpoint_activations={not keeps}".lower(),
    )
    model = MMDiT(config_of(spec))
    model.checkpoint_activations = not keeps
    for block in model.blocks:
        block.fused = True
    x, eps, t, y = torch.randn(32, 1, 8, 8), torch.randn(32, 1, 8, 8), torch.rand(32), texts(32)

    def step() -> None:
        x_t = (1 - t.reshape(-1, 1, 1, 1)) * x + t.reshape(-1, 1, 1, 1) * eps
        (model(x_t, Times.per_sample(t), y).velocity - (eps - x)).square().mean().backward()

    step()
    model.zero_grad(set_to_none=True)
    assert footprint(spec).activations == pytest.approx(allocated(step), rel=0.1)


def test_initial_weights_of_a_run_are_those_that_it_names() -> None:
    """Network and projector; `released` leaves neither modulation nor output at zero."""
    runs = {}
    for initial in ("zero", "released"):
        spec = tiny_text("method.name=self_flow")
        spec = spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"initial": initial})})
        dataset = open_dataset(spec.data)
        runs[initial] = build_run(spec, dataset, split(dataset, 0.5), torch.device("cpu"))
    zero, released = runs["zero"], runs["released"]
    for name in ("final_layer.linear.weight", "blocks.0.context_block.adaLN_modulation.1.bias"):
        assert not zero.model.get_parameter(name).any() and released.model.get_parameter(name).all()
    bias = "projector.0.bias"
    assert not zero.method.get_parameter(bias).any()
    assert 0 < released.method.get_parameter(bias).abs().max() <= 1 / 8
    assert torch.equal(released.ema.get_parameter(name), released.model.get_parameter(name))


def test_layers_are_probed_with_the_empty_caption(run: Record) -> None:
    spec = tiny_text(*SELF_FLOW)
    dataset = open_dataset(spec.data)
    model = load_ema(checkpoint_of_run(run.path, None), spec, dataset, torch.device("cpu"))
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    found = probe(
        model,
        dataset,
        split(dataset, 0.5),
        None,
        time=0.5,
        samples=20,
        device=torch.device("cpu"),
        null=captions()[[10]],
    )
    assert [row.name for row in found.rows] == [f"layer {n}" for n in (1, 2, 3, 4)]
    assert all(torch.equal(y.features[0], captions().features[10]) for y in seen)


def flowrace(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.rstrip().splitlines()[-1]


def test_exported_weights_are_those_of_released_code_and_return_as_a_run(run: Record, tmp_path: Path) -> None:
    """A plain restatement of the released network reads the file; its import has the run's weights."""
    file = tmp_path / "weights.safetensors"
    flowrace("export", run.path, "--layout", "mmdit", "-o", file)
    state, spec = load_file(file), tiny_text(*SELF_FLOW)
    model = load_ema(checkpoint_of_run(run.path, None), spec, open_dataset(spec.data), torch.device("cpu"))
    x, y = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), texts(4)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    ours = model(x, Times.per_sample(t), y).velocity
    theirs = plain_mmdit.velocity(state, 4, x, t, y.features)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    settings = [setting for setting in TINY if not setting.startswith(("backbone.size", "train.steps"))]
    words = [word for setting in ("data.name=digits", *settings) for word in ("--set", setting)]
    back = Path(flowrace("import", file, "--out", tmp_path, "--heads", 4, *words))
    again = checkpoint.load(checkpoint_of_run(back, None)).part("ema")
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())
    assert Record(back).spec["backbone"]["kind"] == "mmdit"


def test_network_of_captions_is_not_exported_as_one_of_labels(run: Record, tmp_path: Path) -> None:
    words = ["export", str(run.path), "--layout", "repa", "-o", str(tmp_path / "weights.pt")]
    result = CliRunner().invoke(cli, words)
    assert isinstance(result.exception, UserError)
    assert "layout 'repa' cannot hold this network: it has texts as its condition" in str(result.exception)
