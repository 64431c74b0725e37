"""The doors of races, registers, golden files and prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from harness.cli.sample import _prompts
from harness.config.data_spec import DataSpec, TextSpec
from harness.data.open import open_dataset
from harness.text.base import TextEncoder, open_text_encoder
from harness.text.captions import PromptConditions
from reports.audit.look_log import read_looks
from reports.audit.register import NAME, read_register
from sweeps.plan.plan import make_plan
from sweeps.race.picture import looks_picture
from sweeps.race.race_file import read_race
from tests.fuzz.door import Door, command
from tests.fuzz.file_doors import written
from tests.fuzz.guards import CACHE
from tests.support.plain_mmdit import random_state
from tests.sweeps.test_race import Trainer, raced, write_file


# Races.
def write_race(folder: Path) -> None:
    write_file(folder, "repa", "sra")


def from_race(folder: Path) -> Iterable[float]:
    race = read_race(folder / "claim.toml")
    plan = make_plan(race.study, folder)
    return [float(run.spec.seed) for run in plan.runs] + [float(race.rule.max_pairs)]


def write_raced(folder: Path) -> None:
    raced(write_file(folder, "repa"), Trainer(folder / "runs"))
    for lock in folder.rglob("*lock"):
        lock.unlink()


def from_looks(folder: Path) -> Iterable[float]:
    """Read a log of looks, and draw it as `flowrace status` does."""
    looks = read_looks(folder / "runs")
    looks_picture(looks)
    return [float(row["look"]) for row in looks]


def from_raced(folder: Path) -> Iterable[float]:
    """Judge a race with its register and its log of looks."""
    from_looks(folder)
    return command("audit", folder / "claim.toml", folder / "runs", "--json")


def from_rows(name: str, folder: Path) -> Iterable[float]:
    """Judge a race whose log has the hashes of its mutated lines, so that only their content is wrong."""
    file = folder / name
    content = file.read_bytes()
    file.write_bytes(linked(content))
    try:
        return list(from_raced(folder))
    finally:
        file.write_bytes(content)


def linked(content: bytes) -> bytes:
    """Return lines of JSON with the hash of the line before as each one's last field."""
    lines, last = [], ""
    for line in content.splitlines():
        start = line.rfind(b'"previous": "')
        line = line if start < 0 else line[:start] + b'"previous": "' + last.encode() + b'"}'
        last = hashlib.sha256(line).hexdigest()
        lines.append(line + b"\n")
    return b"".join(lines)


def from_register(folder: Path) -> Iterable[float]:
    return [entry.milliseconds for entry in read_register(folder / NAME).values()]


# Golden files.
SIZES = {"depth": 2, "width": 16, "channels": 4, "patch": 2, "side": 4, "dim": 6}


def golden_tensors() -> dict[str, torch.Tensor]:
    """Return the tensors of a golden file of MMDiT's samplers, whose outputs are not the released ones."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws)

    given = {
        "z": normal(2, 4, 4, 4),
        "context": normal(2, 3, 6),
        "null_context": normal(3, 6),
        "sde_noise": normal(2, 2, 4, 4, 4),
    }
    outputs = dict.fromkeys(("euler", "heun", "euler_cfg", "euler_maruyama"), torch.zeros(2, 4, 4, 4))
    return (
        {f"weights.{name}": tensor for name, tensor in random_state(0, **SIZES).items()}
        | {f"in.{name}": tensor for name, tensor in given.items()}
        | {f"out.{name}": tensor.clone() for name, tensor in outputs.items()}
    )


META = {
    "arch": '{"num_heads": 2, "patch_size": 2}',
    "num_steps": "2",
    "cfg": '{"scale": 1.5, "low": 0.0, "high": 1.0}',
}


def write_golden(folder: Path) -> None:
    save_file(golden_tensors(), folder / "mmdit.safetensors", META)


def from_golden(file: Path) -> Iterable[float]:
    return command("verify", file, "--json")


def from_golden_metadata(folder: Path) -> Iterable[float]:
    """Verify a golden file with the mutated metadata."""
    file = folder.parent / CACHE / "golden.safetensors"
    meta = {name: (folder / name).read_bytes().decode(errors="replace") for name in META}
    save_file(golden_tensors(), file, meta)
    return from_golden(file)


# Prompts.
@cache
def encoder() -> TextEncoder:
    settings = TextSpec(encoder="random:text", length=8)
    return open_text_encoder(
        settings, open_dataset(DataSpec(name="prompts")), held_out=0.1, device=torch.device("cpu")
    )


def from_prompts(folder: Path) -> Iterable[float]:
    """Read prompts as `flowrace sample --prompts` does, and encode them."""
    found = PromptConditions(encoder(), _prompts(folder / "prompts.txt"))
    json.dumps([found.about(), found.prompts], allow_nan=False)
    return [float(found.null.features.sum()), float(found._features.features.sum())]


PROMPTS = "a small red seven\n\nein Fuchs, 家 {0} $x `id`\n".encode()
RACES = (
    Door("race", partial(written, write_race), from_race, text=True, cases=10),
    Door(
        "log of looks",
        partial(written, write_raced),
        from_looks,
        text=True,
        only=("looks.jsonl",),
    ),
    Door(
        "rows of looks",
        partial(written, write_raced),
        partial(from_rows, "runs/looks.jsonl"),
        text=True,
        cases=6,
        only=("looks.jsonl",),
    ),
    Door(
        "register",
        partial(written, write_raced),
        from_register,
        text=True,
        only=(NAME,),
    ),
    Door(
        "rows of a register",
        partial(written, write_raced),
        partial(from_rows, NAME),
        text=True,
        cases=6,
        only=(NAME,),
    ),
    Door(
        "golden file",
        partial(written, write_golden),
        lambda folder: from_golden(folder / "mmdit.safetensors"),
    ),
    Door(
        "metadata of a golden file",
        lambda: {name: text.encode() for name, text in META.items()},
        from_golden_metadata,
        text=True,
    ),
    Door("prompts", lambda: {"prompts.txt": PROMPTS}, from_prompts, text=True),
)
