"""Calls that read a value of a GPU, for which the host would wait, and copies to it, found without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.config import registry
from harness.flow.student import Student
from harness.runtime import environment
from harness.train.journal import Journal
from tests.support.conformance import CONFIG, OF_TEXT, STREAMS, batch, made, student
from tests.support.runs import losses, part, tiny, trained

READS = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "bincount", "equal"}
READS |= {f"__{kind}__" for kind in ("bool", "int", "float", "index", "array")}
FAST = ("repa", "self_flow", "sprint")
"""An encoder's features, a teacher with two times, and a route."""


class Reads(TorchFunctionMode):
    """Records calls for which the host would wait until a GPU has computed a value."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in READS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class Scalars(TorchDispatchMode):
    """Records the same for functions of torch that call `item` themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self.found.append("item")
        return function(*args, **(kwargs or {}))


class Copies(TorchDispatchMode):
    """Records operators that have tensors of the host and of a GPU, except numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if len({tensor.device.type for tensor in tensors if tensor.ndim}) > 1:
            self.found.append(str(function))
        return out


@contextmanager
def reads_by_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """Record the reads of a run: those of each call of the journal, and those of its steps."""
    found: dict[str, list[str]] = {"outside": [], "step": []}
    place = ["outside"]
    reads, scalars = Reads(), Scalars()
    reads.found = scalars.found = Place(found, place)

    def placed(name: str, original: Callable[..., Any], after: str) -> Callable[..., Any]:
        def call(journal: Journal, *args: Any, **kwargs: Any) -> Any:
            place[0] = name if name != "add" else f"add {args[0].step}"
            try:
                return original(journal, *args, **kwargs)
            finally:
                place[0] = after

        return call

    for name in ("__enter__", "add", "evaluation", "keep_weights", "checkpoint", "ends_early", "finish"):
        after = "outside" if name == "finish" else "step"
        monkeypatch.setattr(Journal, name, placed(name, getattr(Journal, name), after))
    with reads, scalars:
        yield found


class Place(list[str]):
    """A list that adds each entry to the list of the current place."""

    def __init__(self, found: dict[str, list[str]], place: list[str]) -> None:
        super().__init__()
        self._found, self._place = found, place

    def append(self, name: str) -> None:
        self._found.setdefault(self._place[0], []).append(name)


@pytest.mark.usefixtures("quick_networks")
@pytest.mark.parametrize(
    "words",
    [
        ("method.name=self_flow", "train.accumulate=2"),
        pytest.param(("method.name=repa", "method.encoder.name=random:tiny"), marks=pytest.mark.slow),
        pytest.param(("optimizer.name=muon", "train.precision=bfloat16"), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0].split("=")[1],
)
def test_step_reads_values_of_the_device_at_log_lines_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    spec = tiny(*words, "train.log_every=4", "train.checkpoint_every=12", "eval.every=12")
    with reads_by_place(monkeypatch) as found:
        trained(spec, tmp_path)
    assert found["step"] == []
    assert {place for place in found if place.startswith("add")} == {"add 4", "add 8", "add 12"}
    # The losses of all four steps are one transfer.
    assert all(found[f"add {step}"] == ["tolist"] for step in (4, 8))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(name, text, marks=[] if name in FAST and not text else pytest.mark.slow)
        for name in registry.names("method")
        for text in (False, True)
        if not text or name in FAST
    ],
)
def test_loss_on_a_gpu_neither_copies_nor_reads(name: str, text: bool) -> None:
    """Fake tensors have the shape and the device of those of a GPU, and raise if a value is read."""
    backbone = OF_TEXT if text else CONFIG
    method = made(registry.load("method", name), backbone)
    pupil, given = student(method.needs(), backbone), batch(method.needs(), backbone=backbone)
    draw = method.draw(STREAMS, given)
    mode, copies = FakeTensorMode(), Copies()
    given, draw = faked(given, mode), faked(draw, mode)
    device = torch.device("cuda:0")
    with mode:
        for module in (pupil.model, pupil.ema, method):
            move(module, device)
        given, draw = given.to(device), draw.to(device)
        with copies:
            total = method.loss(Student(pupil.model, pupil.ema, pupil.config), given, draw).total
    assert total.device == device and copies.found == []


# Any: a batch or a draw is a tree of dataclasses, tuples, dictionaries, tensors and plain values.
def faked(value: Any, mode: FakeTensorMode) -> Any:
    """Return a value with fake tensors of the same shapes."""
    if isinstance(value, Tensor):
        return mode.from_tensor(value)
    if isinstance(value, dict):
        return {name: faked(item, mode) for name, item in value.items()}
    if isinstance(value, tuple):
        items = [faked(item, mode) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: faked(getattr(value, one.name), mode) for one in fields(value)})
    return value


def move(network: nn.Module | None, device: torch.device) -> None:
    """Replace the parameters and buffers of a network by fake ones on a device."""
    for module in () if network is None else network.modules():
        for name, known in list(module.named_parameters(recurse=False)):
            fresh = torch.empty(known.shape, dtype=known.dtype, device=device)
            setattr(module, name, nn.Parameter(fresh, requires_grad=known.requires_grad))
        for name, known in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(known.shape, dtype=known.dtype, device=device))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_networks")
def test_no_result_depends_on_uninitialised_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NaN in every new tensor, losses and weights have the same bits."""
    plain = trained(tiny("method.name=self_flow"), tmp_path / "plain")
    assert not torch.utils.deterministic.fill_uninitialized_memory
    usual = environment.prepare

    def filled(threads: int) -> None:
        usual(threads)
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)

    monkeypatch.setattr("harness.train.loop.prepare", filled)
    other = trained(tiny("method.name=self_flow"), tmp_path / "filled")
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert losses(other) == losses(plain)
    assert all(part(other, name) == part(plain, name) for name in ("model", "ema", "optimizer"))
