"""A run divided over processes (FSDP2) is the run of one process: losses to 1e-5, the same checkpoint file,
its share of the bytes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from harness.backbone.network import BackboneConfig
from harness.cli.run import run as run_command
from harness.config import registry
from harness.data.open import open_dataset, split
from harness.records import checkpoint, checkpoint_files
from harness.records.record import DONE, Record
from harness.runtime.distributed import World
from harness.runtime.fsdp import is_sharded, local_shard, shard_like
from harness.train.state import Run, build_run, update_ema
from tests.support.conformance import CONFIG, OF_TEXT, network
from tests.support.conformance_runs import words
from tests.support.forked import in_world
from tests.support.runs import TINY, losses, tiny, trained, weights

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("quick_networks")
SHARD = "runtime.shard=true"
SHORT = ("train.keep_checkpoints=9", "train.checkpoint_every=3", "eval.every=12", "eval.samples=8")


class Leg(NamedTuple):
    """A run in a launch: its settings, its folder, and the step that an earlier record is cut back to."""

    settings: tuple[str, ...]
    out: Path
    cut: int | None = None

    @property
    def record(self) -> Record:
        return Record(self.out / tiny(*SHORT, *self.settings).id)


def launch(processes: int, legs: Sequence[Leg]) -> None:
    """Call `flowrace run` for one run after the other in one group of forked processes."""
    in_world(processes, partial(work, legs))


def work(legs: Sequence[Leg]) -> None:
    """Train the runs of a launch, in one of its processes.

    The process group is made once, since a second group of the same name would meet the keys of the first.
    """
    dist.init_process_group("gloo")
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    dist.init_process_group = lambda *_, **__: None
    for leg in legs:
        if leg.cut is not None and dist.get_rank() == 0:
            cut(leg.record, leg.cut)
        dist.barrier()
        words = [word for override in (*TINY, *SHORT, *leg.settings) for word in ("--set", override)]
        command = ["digits", *words, "--out", str(leg.out), "--no-track", "--quiet"]
        run_command.main(command, standalone_mode=False)
    leave()


def cut(record: Record, step: int) -> None:
    """Cut a record back to how it was after the checkpoint of a step."""
    (record.path / DONE).unlink()
    for file in checkpoint_files.checkpoints(record.path / "checkpoints"):
        if checkpoint_files.step_of(file) > step:
            file.unlink()


def alone(tmp_path: Path, *settings: str) -> Record:
    return trained(tiny(*SHORT, *settings), tmp_path / "alone")


def final_tensors(record: Record) -> list[torch.Tensor]:
    """Return the final weights of student and EMA, by name."""
    saved = checkpoint.load(checkpoint_files.checkpoints(record.path / "checkpoints")[-1])
    return [saved.tensors[name] for name in sorted(saved.tensors) if name.startswith(("model.", "ema."))]


def check_same(found: Record, known: Record) -> None:
    """Compare losses of all steps to 1e-5, norms to 1e-4, the evaluated steps, and the names of the tensors.

    The gradients of samples that agree (DUPA, REED) cancel in their sum, so rounding is a larger share of it.
    A loss of cosines alone (REED before the flow loss has a weight) is rounded as 1 is.
    """
    steps = list(zip(found.of("train"), known.of("train"), strict=True))
    assert len(steps) == 12
    for name, rounding in (("loss", 1e-5), ("grad_norm", 1e-4)):
        known_values = [b[name] for _, b in steps]
        assert [a[name] for a, _ in steps] == pytest.approx(known_values, rel=rounding, abs=1e-6)
    (a,), (b,) = found.of("eval"), known.of("eval")
    assert a["protocol"] == b["protocol"]
    assert a["metrics"]["fd:local"]["mean"] == pytest.approx(b["metrics"]["fd:local"]["mean"], rel=1e-3)
    files = [checkpoint_files.checkpoints(record.path / "checkpoints")[-1] for record in (found, known)]
    one, other = map(checkpoint.load, files)
    outline = [{n: (t.shape, t.dtype) for n, t in saved.tensors.items()} for saved in (one, other)]
    assert outline[0] == outline[1] and one.meta["step"] == "12"
    for name, tensor in one.part("ema").items():
        expected = other.part("ema")[name]
        if name.endswith("qkv.bias"):
            # Without the keys': softmax does not see it, so its gradient is rounding, which Adam enlarges.
            tensor, expected = (torch.stack(t.chunk(3)[::2]) for t in (tensor, expected))
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Replicated, and sharded."""
    asked = ("method.name=self_flow",)
    one, legs = alone(tmp_path, *asked), [Leg(asked, tmp_path / "r"), Leg((*asked, SHARD), tmp_path / "s")]
    launch(2, legs)
    for two in (leg.record for leg in legs):
        check_same(two, one)
        assert two.environment[0]["params"] == one.environment[0]["params"]
        assert two.of("train")[-1]["flops"] == one.of("train")[-1]["flops"]
        assert two.environment[0]["devices"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "names", "kinds"),
    [
        (2, registry.names("method"), ["true"]),
        (4, ["self_flow", "reg", "haste", "dispersive"], ["true", "false"]),
    ],
    ids=["two", "four"],
)
def test_every_method_equals_one_process(
    tmp_path: Path, processes: int, names: list[str], kinds: list[str]
) -> None:
    """Taps, teacher, projector, extra token, heads and groups, divided and replicated (two replicated: in
    conformance)."""
    asked = [tuple(words(registry.load("method", name))) for name in names]
    legs = [Leg((*some, f"runtime.shard={kind}"), tmp_path / kind) for kind in kinds for some in asked]
    launch(processes, legs)
    expected = [alone(tmp_path, *some) for some in asked]
    for number, leg in enumerate(legs):
        check_same(leg.record, expected[number % len(asked)])


@pytest.mark.slow
def test_learned_weight_of_x_prediction_equals_one_process(tmp_path: Path) -> None:
    """The weight by time (`flow.weighting`) is a module of the method."""
    asked = ("flow.weighting=log_variance", "flow.prediction=x")
    leg = Leg((*asked, SHARD), tmp_path / "divided")
    launch(2, [leg])
    check_same(leg.record, alone(tmp_path, *asked))


@pytest.mark.slow
def test_run_continues_with_one_two_four_and_one_processes(tmp_path: Path) -> None:
    """Three steps in each world, sharded or not; record and checkpoint do not depend on it."""
    asked = ("method.name=self_flow",)
    unbroken = alone(tmp_path, *asked)
    ways = {"divided": ("true", "true"), "replicated": ("false", "false"), "mixed": ("true", "false")}
    first, second = (
        [
            Leg((*asked, f"runtime.shard={way[number]}"), tmp_path / name, 3 * number + 3)
            for name, way in ways.items()
        ]
        for number in (0, 1)
    )
    for leg in first:
        shutil.copytree(unbroken.path, leg.record.path)
    launch(2, first)
    launch(4, second)
    for leg in first:
        cut(leg.record, 9)
        trained(tiny(*SHORT, *asked), leg.out)
        check_same(leg.record, unbroken)


@pytest.mark.slow
def test_sharded_run_continues_to_the_same_bits(tmp_path: Path) -> None:
    """Promise 4, in a world of two; and what changes no result of one process changes none of two."""
    asked = ("method.name=repa", "method.encoder.name=random:small", SHARD)
    legs = [
        Leg(asked, tmp_path / "unbroken"),
        Leg(asked, tmp_path / "broken"),
        Leg(asked, tmp_path / "broken", 6),
        Leg((*asked, "runtime.checkpoint_activations=true"), tmp_path / "again"),
        Leg((*asked, "train.accumulate=2"), tmp_path / "parts"),
    ]
    launch(2, legs)
    unbroken, _, broken, again, parts = (leg.record for leg in legs)
    assert weights(broken) == weights(unbroken) == weights(again)
    assert losses(parts) == pytest.approx(losses(unbroken), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["train.precision=bfloat16", "runtime.compile=true"])
def test_sharded_equals_replicated_in_bfloat16_and_compiled(tmp_path: Path, change: str) -> None:
    """Losses to 1e-6 and weights to 1e-5, compiled and under autocast, which rounds in the same places.

    Not every CPU gives equal bits: a product in bfloat16 may depend on where its operands are in memory.
    Nothing is clipped, since the norm is summed in another order.
    """
    asked = ("method.name=self_flow", "train.clip=1e9", change)
    divided, replicated = (
        Leg((*asked, f"runtime.shard={kind}"), tmp_path / kind) for kind in ("true", "false")
    )
    launch(2, [divided, replicated])
    check_same(divided.record, replicated.record)
    if change != "runtime.compile=true":
        pairs = zip(final_tensors(divided.record), final_tensors(replicated.record), strict=True)
        assert all((one - other).abs().max() <= 1e-5 for one, other in pairs)


def test_one_process_shards_nothing() -> None:
    assert World(0, 1, CPU).mesh() is None
    run = made(tiny(SHARD), None)
    assert not is_sharded(run.model) and type(run.model).__name__ == "SiT"


@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_holds_its_rows_only(size: int) -> None:
    """Rank r holds rows r c to (r + 1) c of n rows, c = ceil(n / size), of parameters, moments and EMA.

    No storage is larger than c rows.
    """
    full = [p.shape for p in made(tiny("method.name=self_flow"), None).learned.values()]
    total = 4 * sum(map(torch.Size.numel, full))
    held = []
    for rank in range(size):
        with pretended(rank, size) as world:
            run = made(tiny("method.name=self_flow"), world.mesh())
            stepped(run)
            params, ema = list(run.learned.values()), list(run.ema.parameters())
            moments = [run.optimizer.state[p][kind] for p in params for kind in ("exp_avg", "exp_avg_sq")]
            expected = sum(4 * rows_of(shape[0], rank, size) * shape[1:].numel() for shape in full)
            assert bytes_of(params) == expected and bytes_of(moments) == 2 * expected
            assert bytes_of(ema) == bytes_of(run.model.parameters())
            for tensor in (*params, *moments, *ema):
                most = 4 * rows_of(len(tensor), 0, size) * tensor.shape[1:].numel()
                assert local_shard(tensor.detach()).untyped_storage().nbytes() <= most
            held.append(expected)
    assert sum(held) == total and max(held) < 1.05 * total / size


def test_blocks_of_the_student_are_gathered_as_autocast_rounds_them() -> None:
    """Shards stay in float32, and so does the EMA, in which evaluations may run."""
    for precision, gathered in {"bfloat16": torch.bfloat16, "float32": torch.float32}.items():
        with pretended(0, 2) as world:
            run = made(tiny(f"train.precision={precision}"), world.mesh())
            assert {p.dtype for p in run.learned.values()} == {torch.float32}
            for one, dtype in ((run.model, gathered), (run.ema, torch.float32)):
                block = one.blocks[0]
                block.unshard()
                assert {p.dtype for p in block.parameters()} == {dtype}


@pytest.mark.parametrize("backbone", [CONFIG, OF_TEXT], ids=["sit", "mmdit"])
def test_autocast_rounds_every_weight_of_a_block(backbone: BackboneConfig) -> None:
    """Or blocks could not be gathered in bfloat16: all of their weights belong to linear layers."""
    blocks = network(0, backbone).blocks
    linear = [m for m in blocks.modules() if isinstance(m, torch.nn.Linear)]
    assert {id(p) for m in linear for p in m.parameters()} == {id(p) for p in blocks.parameters()}


def test_checkpoint_is_read_shard_by_shard() -> None:
    """A rank keeps its rows of a tensor that it reads, and frees the others."""
    tensor = torch.arange(28.0).reshape(7, 4)
    for rank, rows in enumerate(((0, 4), (4, 7))):
        with pretended(rank, 2) as world:
            mine = shard_like(tensor, like_rows(world))
            assert torch.equal(local_shard(mine), tensor[slice(*rows)])
            assert local_shard(mine).untyped_storage().nbytes() < tensor.untyped_storage().nbytes()


def like_rows(world: World) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(torch.zeros(7, 4), world.mesh(), [Shard(0)], src_data_rank=None)


def stepped(run: Run) -> None:
    """One step of optimizer and EMA, gradients of one everywhere; without a pass, which needs the other
    processes."""
    for parameter in run.learned.values():
        parameter.grad = torch.ones_like(parameter)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    update_ema(run.ema, run.model, 0.9)


def rows_of(rows: int, rank: int, size: int) -> int:
    each = -(-rows // size)
    return max(0, min(each, rows - rank * each))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(local_shard(t.detach()).nbytes for t in tensors)


def made(spec: Any, mesh: Any) -> Run:
    dataset = open_dataset(spec.data)
    return build_run(spec, dataset, split(dataset, spec.data.held_out), CPU, mesh)


@contextmanager
def pretended(rank: int, size: int) -> Iterator[World]:
    """One process of a group whose exchanges do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield World(rank, size, CPU)
    finally:
        dist.destroy_process_group()
