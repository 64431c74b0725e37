"""Two and four processes evaluate as one: the same numbers, grids and failures, bit for bit, and everybody
has the same work."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from harness.backbone.sit import Prediction
from harness.config.data_spec import DataSpec
from harness.config.evaluation_spec import EvalSpec
from harness.data.open import open_dataset, split
from harness.errors import RunStopped, UserError
from harness.evaluation import kept_features
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.features import FeatureSet, Masked
from harness.evaluation.real_side import real_features
from harness.records.record import Record
from harness.runtime.distributed import World
from harness.runtime.rounds import main_first, rounds, stop_if_any_failed
from metrics.extractors.base import Extractor
from tests.support.features import quick
from tests.support.forked import exit_code, fork, has_ended
from tests.support.runs import TINY, tiny, torchrun, trained
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("quick_networks")
CPU = torch.device("cpu")
SPEC = EvalSpec(
    samples=70,
    sampler="euler_maruyama",
    sampler_steps=2,
    guidance=1.5,
    batch_size=15,  # five batches, the last one short: rounds of 2 and of 4 that do not come out even
    grid=40,
    replicates=2,
    metrics=("fd:local", "precision:local", "cmmd:local", "is:local", "accuracy:local"),
)
MOVING = SPEC.model_copy(update={"replicates": 1, "metrics": ("dynamics", "loss:held_out")})
DATA = {"digits": SPEC, "moving_digits": MOVING}


class Painter(torch.nn.Module):
    """Draws something that depends on noise and label, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x, times, y):
        self.asked += 1
        return Prediction(x * 0.8 + (y.view(-1, *[1] * (x.ndim - 1)) - 5) * 0.05, {})


def evaluator(name: str, world: World | None) -> Evaluator:
    dataset = open_dataset(DataSpec(name=name, frames=4 if name == "moving_digits" else None))
    sides = split(dataset, 0.2)
    return Evaluator(DATA[name], dataset, sides.train, CPU, sides.held_out, world)


def findings(world: World | None = None) -> dict[str, object]:
    """Return everything that the tests compare between worlds."""
    prepared = {name: evaluator(name, world) for name in DATA}
    found: dict[str, object] = {name: measured(one) for name, one in prepared.items()}
    # The second time, rank 0 reads what the ranks have measured together.
    found["digits again"] = measured(evaluator("digits", world))
    found["broken data"] = broken_data(prepared["digits"], batch=1)
    found["broken samples"] = broken_samples(prepared["digits"], batch=1)
    return found


def measured(prepared: Evaluator) -> dict[str, object]:
    """Return all results of an evaluation as JSON values."""
    painter = Painter()
    result = prepared(painter)
    if result is None:
        return {"asked": painter.asked}
    numbers = {"metrics": result.rows, "errors": result.errors, "protocol": result.protocol}
    return {"asked": painter.asked, **numbers, "floor": prepared.noise_floor, "grid": result.grid.tolist()}


def unusable(extract: Extractor, number: int) -> Extractor:
    """Return the network with features that are not finite in the batch of that number, from 0."""
    seen: list[int] = []

    def network(x: torch.Tensor) -> dict[str, torch.Tensor]:
        found = {name: value.clone() for name, value in extract.network(x).items()}
        if len(seen) == number:
            found["features"][3, 5] = torch.inf
        seen.append(len(x))
        return found

    return replace(extract, network=network)


def broken_samples(prepared: Evaluator, batch: int) -> dict[str, str]:
    """Return the errors of an evaluation whose batch `batch` is not finite, whichever rank generates it."""
    rank, number = batch % prepared.world.size, batch // prepared.world.size
    if prepared.world.rank == rank:
        prepared.extractors = {"local": unusable(prepared.extractors["local"], number)}
    result = prepared(Painter())
    return {} if result is None else result.errors


def broken_data(prepared: Evaluator, batch: int) -> str:
    """Return the error for the same batch of real data."""
    world, dataset = prepared.world, open_dataset(DataSpec(name="digits"))
    extract = prepared.extractors["local"]
    if world.rank == batch % world.size:
        extract = unusable(extract, batch // world.size)
    sets = [Masked(FeatureSet(["features"]))]
    try:
        real_features(extract, dataset, split(dataset, 0.2).train, sets, "image", world)
    except (UserError, RunStopped) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def work(rank: int, size: int, port: int, folder: Path) -> None:
    """Write the findings of one process of a world to a file."""
    torch.set_num_threads(1)
    # Entries of this world alone, so that its ranks share the pass over the real samples.
    kept_features.VERSION = str(folder)
    if size == 1:
        found = findings()
    else:
        where = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size)
        found = findings(World(rank, size, CPU))
        dist.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


def worked(size: int, folder: Path) -> list[dict]:
    """Return the findings of each process of a world; fail if one does not end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [fork(partial(work, rank, size, port, folder)) for rank in range(size)]
    try:
        wait_until(lambda: all(map(has_ended, processes)), seconds=200)
    finally:
        for process in processes:
            if not has_ended(process):
                os.kill(process, signal.SIGKILL)
        codes = [exit_code(process) for process in processes]
    assert codes == [0] * size
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return worked(1, tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def world(
    request: pytest.FixtureRequest, alone: dict, tmp_path_factory: pytest.TempPathFactory
) -> list[dict]:
    return worked(request.param, tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("name", DATA)
def test_world_measures_as_one_process(alone: dict, world: list[dict], name: str) -> None:
    """Exactly equal: rows and moments come together in the order of one process."""
    expected = {key: value for key, value in alone[name].items() if key != "asked"}
    assert set(expected["metrics"]) >= set(DATA[name].metrics) and expected["errors"] == {}
    assert {key: value for key, value in world[0][name].items() if key != "asked"} == expected
    assert all(set(other[name]) == {"asked"} for other in world[1:])


def test_ranks_measure_alike_with_real_samples_from_the_cache(alone: dict, world: list[dict]) -> None:
    assert alone["digits again"] == alone["digits"]
    assert [found["digits again"] for found in world] == [found["digits"] for found in world]


@pytest.mark.parametrize("name", DATA)
def test_every_rank_is_called_equally_often(alone: dict, world: list[dict], name: str) -> None:
    """A pass of a divided network takes every process: rounds, steps and halves of the guidance are the same
    for all."""
    asked = {found[name]["asked"] for found in world}
    rounds = -(-5 // len(world))
    assert asked == {alone[name]["asked"] * rounds // 5}


def test_features_that_are_not_finite_fail_on_every_rank(alone: dict, world: list[dict]) -> None:
    assert set(alone["broken samples"]) == set(SPEC.metrics)
    assert world[0]["broken samples"] == alone["broken samples"]


def test_real_features_that_are_not_finite_stop_every_rank(alone: dict, world: list[dict]) -> None:
    assert alone["broken data"].startswith("UserError: the training data cannot be measured by 'local'")
    assert world[0]["broken data"] == alone["broken data"]
    others = {found["broken data"] for found in world[1:]}
    assert others == {"RunStopped: another process failed and reports the reason"}


@quick
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 7), st.integers(0, 100))
def test_rounds_are_the_batches_of_one_process_in_their_order(
    n: int, size: int, ranks: int, begin: int
) -> None:
    numbers = range(begin, begin + n)
    batches = [turn.local for turn in rounds(numbers, size, World(0, 1, CPU))]
    assert [i for batch in batches for i in batch] == list(numbers)
    assert all(len(batch) == size for batch in batches[:-1])
    shares = [list(rounds(numbers, size, World(rank, ranks, CPU))) for rank in range(ranks)]
    assert {len(share) for share in shares} == {-(-len(batches) // ranks)}
    for same_round in zip(*shares, strict=True):
        drawn = [i for one in same_round for i in one.local]
        assert list(same_round[0].combined) == drawn[: len(same_round[0].combined)]
        assert all(one.local in batches and one.combined == same_round[0].combined for one in same_round)
    assert [i for turn in shares[-1] for i in turn.combined] == list(numbers)


@dataclass(frozen=True)
class Scripted(World):
    """One of two processes that logs its exchanges and gets a given answer."""

    failed: bool = False
    log: list[str] = field(default_factory=list)

    def any(self, flag: bool) -> bool:
        self.log.append("exchange")
        return flag or self.failed


@pytest.mark.parametrize(("rank", "order"), [(0, ["makes", "exchange"]), (1, ["exchange", "makes"])])
def test_rank_0_runs_first(rank: int, order: list[str]) -> None:
    world = Scripted(rank, 2, CPU)
    with main_first(world):
        world.log.append("makes")
    assert world.log == order


def test_failing_rank_stops_the_others() -> None:
    main = Scripted(0, 2, CPU)
    with pytest.raises(UserError, match="no weights"), main_first(main):
        raise UserError("no weights")
    assert main.log == ["exchange"]
    with pytest.raises(RunStopped, match="another process"), main_first(Scripted(1, 2, CPU, failed=True)):
        pytest.fail("the others begin in vain")
    stop_if_any_failed(Scripted(0, 2, CPU), failed=True)  # has its own reason to raise
    with pytest.raises(RunStopped):
        stop_if_any_failed(Scripted(0, 2, CPU, failed=True), failed=False)


@pytest.mark.slow
def test_run_of_two_processes_records_the_evaluations_of_one(tmp_path: Path) -> None:
    """With weights that do not move, whose sums over processes would round differently."""
    still = ("train.learning_rate=1e-30", "train.steps=2", "eval.every=1", "eval.grid=20")
    one = trained(tiny(*still), tmp_path / "one")
    result = torchrun("digits", (*TINY, *still), tmp_path / "two")
    assert result.returncode == 0, result.stderr
    two = Record(tmp_path / "two" / one.id)
    kept = lambda record: [  # noqa: E731
        {key: event[key] for key in ("step", "metrics", "protocol")} for event in record.of("eval")
    ]
    assert len(kept(one)) == 2 and kept(two) == kept(one)
    assert two.environment[0]["evaluation"] == one.environment[0]["evaluation"]
    for step in (1, 2):
        picture = f"samples/step-{step:08d}.png"
        assert (two.path / picture).read_bytes() == (one.path / picture).read_bytes()
