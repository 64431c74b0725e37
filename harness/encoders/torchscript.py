"""Frozen networks of TorchScript files, for example a MobileNetV2 trained on ImageNet.

The name holds what a plan needs to know without the file, for example
`torchscript:mobilenetv2?size=128&dim=1280&flops=195588096`:

    size     side in pixels to which images are resized (bilinear, with antialias)
    dim      width of a token
    flops    FLOPs of one image's forward pass, two for each multiply-add
    range    range of pixel values: `signed` [-1, 1] (default), `unit` [0, 1], `byte` 0..255

`dim` and `flops` are compared with the file when it is opened. `method.encoder.weights` is the file. If the
network returns a map (B, dim, rows, columns), its cells are the tokens. If it returns pooled features, the
tokens are the map before its last average pool over all cells. A map of another grid than the backbone's is
resized to it (bilinear). TorchScript is code: only open files that you trust.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.data.dataset import Dataset
from harness.encoders.base import Architecture, EncoderChoice, Viewer, no_attention, parse_name
from harness.encoders.weights import user_errors
from harness.errors import UserError
from harness.flow.batch import View
from metrics.extractors.torchscript import RANGES, open_script
from metrics.files.hashing import file_sha256

EXAMPLE = "torchscript:mobilenetv2?size=128&dim=1280&flops=195588096"
LIMITS = {"size": 2048, "dim": 2**20, "flops": 2**50}
"""Options that a name must have, positive integers, and their largest values."""
POOLS = ("aten::mean", "aten::adaptive_avg_pool2d", "aten::avg_pool2d")
"""Operators that end in pooled features, if they pool all cells."""
Maps = Callable[[Tensor], Tensor]
"""A function from prepared images (B, 3, size, size) to maps (B, dim, rows, columns)."""


class Options(NamedTuple):
    """The options of a name."""

    size: int
    dim: int
    flops: int
    range: str = "signed"


class TorchScriptEncoder(Viewer):
    """A network of a TorchScript file, whose size, dim and flops are in the name.

    For example torchscript:mobilenetv2?size=128&dim=1280&flops=195588096.
    """

    heads = 0

    def __init__(
        self,
        choice: EncoderChoice,
        dataset: Dataset,
        *,
        grid: tuple[int, int],
        held_out: float,
        device: torch.device,
    ) -> None:
        self.name, self.grid, self._options = choice.name, grid, options_of(parse_name(choice.name)[1])
        self.dim, self.flops = self._options.dim, self._options.flops
        file = script_file(choice)
        with user_errors():
            self.sha256 = file_sha256(file)
            network = open_script(file, device)
        self.params = parameters_of(network)
        self._maps = self._checked(network, file, device)

    @staticmethod
    def architecture(model: str, shape: tuple[int, ...], classes: int, grid: tuple[int, int]) -> Architecture:
        """Return width and FLOPs as the name states them."""
        options = options_of(model)
        return Architecture(options.dim, options.flops)

    @staticmethod
    def check_weights(choice: EncoderChoice) -> None:
        """Raise `UserError` if the file is not on this machine."""
        script_file(choice)

    @torch.no_grad()
    def view(self, images: Tensor, *, summary: bool = False, attention: int = 0) -> View:
        """Return tokens of images and, if requested, their mean as summary."""
        if attention:
            raise no_attention(self.name)
        x = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        size = (self._options.size, self._options.size)
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        divisor, offset = RANGES[self._options.range]
        # Encoders are given [-1, 1], and the table of ranges starts from bytes.
        maps = self._maps((x + 1) * (127.5 / divisor) + offset).float()
        if maps.shape[2:] != self.grid:
            maps = F.interpolate(maps, self.grid, mode="bilinear", align_corners=False)
        tokens = maps.flatten(2).transpose(1, 2).contiguous()
        return View(tokens, tokens.mean(dim=1) if summary else None)

    @torch.no_grad()
    # Any: a network of TorchScript.
    def _checked(self, network: Any, file: Path, device: torch.device) -> Maps:
        """Return the network up to its map. Raises `UserError` for other width or FLOPs than in the name."""
        blank = torch.zeros(1, 3, self._options.size, self._options.size, device=device)
        try:
            to_maps = maps_of(network, blank, file)
            with FlopCounterMode(display=False) as counter:
                maps = to_maps(blank)
        except RuntimeError as error:
            last = str(error).strip().rpartition("\n")[2]
            raise UserError(f"{file} does not take images of size={self._options.size}: {last}") from error
        if maps.ndim != 4:
            raise UserError(
                f"{file} returns {tuple(maps.shape)} for one image; expected a map (1, dim, rows, columns)"
            )
        found = {"dim": maps.shape[1], "flops": counter.get_total_flops()}
        for name, value in found.items():
            if value != getattr(self._options, name):
                raise UserError(
                    f"encoder '{self.name}' states {name}={getattr(self._options, name)}, but {file} has "
                    f"{value}; write {name}={value} in its name"
                )
        return to_maps


def options_of(model: str) -> Options:
    """Return the options in the model of a name; raises `UserError` for missing and unknown ones."""
    pairs = parse_qsl(model.partition("?")[2], keep_blank_values=True)
    given = dict(pairs)
    unknown = [name for name, _ in pairs if name not in Options._fields]
    wrong = [
        name
        for name, most in LIMITS.items()
        if not (given.get(name, "").isdecimal() and len(given[name]) < 20 and 0 < int(given[name]) <= most)
    ]
    scale = given.get("range", "signed")
    if unknown or wrong or len(given) < len(pairs) or scale not in RANGES:
        first = (*unknown, *wrong, "range")[0]
        raise UserError(
            f"encoder 'torchscript:{model}': option '{first}' is missing, repeated or wrong; write for "
            f"example {EXAMPLE}"
        )
    return Options(int(given["size"]), int(given["dim"]), int(given["flops"]), scale)


def script_file(choice: EncoderChoice) -> Path:
    """Return the file of a choice; raises `UserError` if it is not on this machine."""
    options_of(parse_name(choice.name)[1])
    if not choice.weights:
        raise UserError(
            f"encoder '{choice.name}' needs a TorchScript file; set method.encoder.weights to its path"
        )
    file = Path(choice.weights).expanduser()
    if not file.is_file():
        raise UserError(f"method.encoder.weights = {choice.weights}: no such file")
    return file


# Any: graphs and functions of TorchScript have no types.
def maps_of(network: Any, blank: Tensor, file: Path) -> Maps:
    """Return a network as a function to maps, from before its last average pool if it returns vectors.

    `blank` is an image (1, 3, size, size). Raises `RuntimeError` if the network does not take its size, and
    `UserError` if it has neither a map nor a pool over all cells of one.
    """
    if isinstance(found := network(blank), Tensor) and found.ndim == 4:
        return network
    full = network.inlined_graph
    kinds = [node.kind() for node in full.nodes()]
    for place in reversed([place for place, kind in enumerate(kinds) if kind in POOLS]):
        # A graph owns its nodes, and each attempt removes some.
        graph = full.copy()
        node = list(graph.nodes())[place]
        over = _integers(list(node.inputs())[1])
        maps = _before(network, graph, node)
        if _pools_all(kinds[place], over, maps(blank)):
            return maps
    raise UserError(
        f"{file} returns no map, and has no average pool over all cells before its output; export a network "
        "whose output is a map (B, dim, rows, columns)"
    )


def _before(network: Any, graph: Any, node: Any) -> Maps:
    """Return a network as a function to the first input of a node of its graph, which it changes."""
    graph.registerOutput(next(node.inputs()))
    graph.eraseOutput(0)
    # Without it, layers after the pool would be computed and counted.
    torch._C._jit_pass_dce(graph)
    function = torch._C._create_function_from_graph("maps", graph)
    return lambda x: function(network._c, x)


def _pools_all(kind: str, over: list[int], maps: Tensor) -> bool:
    """Return whether a pool over axes, to a size or of a size takes the mean over all cells of maps."""
    if maps.ndim != 4:
        return False
    if kind == "aten::mean":
        return sorted(axis % 4 for axis in over) == [2, 3]
    if kind == "aten::adaptive_avg_pool2d":
        return set(over) == {1}
    return (over * 2)[:2] == list(maps.shape[2:])


def _integers(value: Any) -> list[int]:
    """Return the integers of a value of a graph; none if they are not constant."""
    constant = value.toIValue()
    if constant is None and value.node().kind() == "prim::ListConstruct":
        constant = [item.toIValue() for item in value.node().inputs()]
    found = constant if isinstance(constant, list) else [constant]
    integers = [item for item in found if isinstance(item, int)]
    return integers if len(integers) == len(found) else []


def parameters_of(network: Any) -> int:
    """Return the number of parameters; those of a frozen network are constants of its graph."""
    if count := sum(p.numel() for p in network.parameters()):
        return count
    # The graph owns its nodes.
    graph = network.inlined_graph
    constants = (node.output().toIValue() for node in graph.findAllNodes("prim::Constant"))
    return sum(value.numel() for value in constants if isinstance(value, Tensor))
