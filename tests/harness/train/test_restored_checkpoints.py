"""A checkpoint that does not belong to its spec is refused by the name of the tensor."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.config.training_spec import FlowSpec, StartSpec
from harness.errors import UserError
from harness.records import checkpoint
from harness.records.checkpoint_files import checkpoints, path_of
from harness.records.record import Record
from harness.runtime.distributed import join
from harness.train.state import restore_run
from methods.repa import Repa
from tests.support.conformance import CONFIG
from tests.support.forked import in_world
from tests.support.runs import tiny, trained

SPEC = ("train.steps=4", "eval.every=4")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return trained(tiny(*SPEC, "eval.samples=4", "eval.sampler_steps=1"), tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.t_embedder.mlp.0.bias": None}, r"lacks t_embedder\.mlp\.0\.bias"),
        ({"ema.more": torch.zeros(1)}, "has the unknown tensor more"),
        (
            {"model.t_embedder.mlp.0.bias": torch.zeros(3)},
            r"mlp\.0\.bias has shape \(3,\), but this spec needs",
        ),
        (
            {"optimizer.model.t_embedder.mlp.0.bias.exp_avg": None},
            r"lacks the tensor optimizer\.model\..*exp_avg",
        ),
        ({"optimizer.model.t_embedder.mlp.0.bias.step": torch.zeros(2)}, "lacks the tensor .*step of shape"),
        ({"step": None}, "has no step in its header"),
    ],
    ids=["missing", "unknown", "shape", "optimizer", "optimizer shape", "step"],
)
def test_tensor_that_is_missing_unknown_or_of_another_shape_is_named(
    tmp_path: Path, finished: Record, change: dict[str, torch.Tensor | None], message: str
) -> None:
    run = tmp_path / finished.id
    shutil.copytree(finished.path, run)
    (run / "done").unlink()
    file = checkpoints(run / "checkpoints")[-1]
    found = checkpoint.load(file)
    meta = {key: value for key, value in found.meta.items() if key not in change}
    tensors = found.tensors | {name: value for name, value in change.items() if value is not None}
    checkpoint.save(
        file, {k: v for k, v in tensors.items() if k not in change or change[k] is not None}, meta
    )
    before = file.read_bytes()
    with pytest.raises(UserError, match=rf"step-00000004\.safetensors.*{message}"):
        trained(tiny(*SPEC, "eval.samples=4", "eval.sampler_steps=1"), tmp_path)
    assert file.read_bytes() == before


@pytest.mark.parametrize("saves", [True, False])
def test_learned_weight_of_times_is_that_of_the_imported_file_if_it_has_one(
    tmp_path: Path, saves: bool
) -> None:
    """Released files have projectors alone, and then the weight begins at zero."""
    method = Repa.build(
        Repa.Config(layer=1), CONFIG, encoder_dims=(24,), flow=FlowSpec(weighting="log_variance")
    )
    saved = {name: torch.ones_like(t) for name, t in method.state_dict().items()}
    kept = {name: t for name, t in saved.items() if saves or not name.startswith("log_variance.")}
    network = torch.nn.Linear(2, 2)
    weights = {name: torch.zeros_like(t) for name, t in network.state_dict().items()}
    file = tmp_path / "start.safetensors"
    tensors = {f"ema.{n}": t for n, t in weights.items()} | {f"method.{n}": t for n, t in kept.items()}
    checkpoint.save(file, tensors, {"imported": "abc", "method": "repa"})
    start = StartSpec(weights="abc", file=str(file))
    spec = SimpleNamespace(start=start, method=SimpleNamespace(name="repa"))
    run = SimpleNamespace(spec=spec, model=network, ema=network, method=method, step=0)
    restore_run(run, tmp_path / "run" / "checkpoints")  # pyright: ignore[reportArgumentType]
    found = method.state_dict()
    assert found.pop("log_variance.weight").eq(1.0 if saves else 0.0).all()
    assert found and all(t.eq(1).all() for t in found.values())


def test_run_with_a_checkpoint_that_cannot_be_read_stops_and_renames_nothing(
    tmp_path: Path, finished: Record
) -> None:
    """An older one, from which it could continue, would cost the steps between them."""
    run = tmp_path / finished.id
    shutil.copytree(finished.path, run)
    (run / "done").unlink()
    file = checkpoints(run / "checkpoints")[-1]
    newer = file.with_name("step-00000006.safetensors")
    newer.mkdir()
    with pytest.raises(UserError, match=r"cannot read .*step-00000006\.safetensors: Is a directory"):
        trained(tiny(*SPEC, "eval.samples=4", "eval.sampler_steps=1"), tmp_path)
    assert checkpoints(run / "checkpoints") == [file, newer]


@pytest.mark.parametrize("numbers", [(7, 7), (7, 3), (2**62, 2**62 + 1)])
def test_ranks_agree_on_equal_numbers_alone(numbers: tuple[int, int]) -> None:
    def work() -> None:
        with join("cpu") as world:
            assert world.agrees(numbers[world.rank]) == (numbers[0] == numbers[1])

    in_world(2, work)


def test_ranks_that_read_different_checkpoints_train_no_further(tmp_path: Path, finished: Record) -> None:
    """To one process, the newest checkpoint seems damaged; it is not renamed."""
    run = tmp_path / finished.id
    shutil.copytree(finished.path, run)
    (run / "done").unlink()
    folder = run / "checkpoints"
    (newest,) = checkpoints(folder)
    saved = checkpoint.load(newest)
    checkpoint.save(path_of(folder, 2), saved.tensors, saved.meta | {"step": "2"})
    load = checkpoint.load

    def work() -> None:
        def other(file: Path) -> checkpoint.Checkpoint:
            if file == newest and os.environ["RANK"] == "1":
                raise checkpoint.DamagedCheckpoint("stale")
            return load(file)

        checkpoint.load = other
        with pytest.raises(UserError, match=r"the processes read different checkpoints in .*step [24]\)"):
            trained(tiny(*SPEC, "eval.samples=4", "eval.sampler_steps=1"), tmp_path)

    in_world(2, work)
    assert checkpoints(folder) == [path_of(folder, 2), newest] and not (run / "done").exists()
