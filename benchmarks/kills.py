"""Kills of commands, at random and at chosen instants, and whether their reruns end in the same bits.

    python -m benchmarks.kills [--seed 20261130] [--quick --out FILE]

Runs, extensions, evaluations of studies, imports and rollouts: five methods on pictures, videos and sound,
each seconds long, on one core. A killed command is run again. Every file it leaves is compared with those of
one that was not killed. Writes benchmarks/results/kills.json; exit code 1 if there is a difference. `--quick`
kills each command once, and needs `--out`: its counts do not replace those of the full run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from harness.runtime.environment import package_version
from tests.support.kills import (
    AT_RANDOM,
    LAYOUTS,
    METHODS,
    OF_MODALITY,
    POLICIES,
    Differs,
    Scene,
    check_kill,
    eval_scene,
    extend_scene,
    import_scene,
    rollout_scene,
    run_scene,
    unbroken,
)
from tests.support.quick import quickly_trained

KILLS = {"run": 7, "extend": 3, "eval STUDY": 10, "import": 4, "rollout": 10}
"""Kills of each scene: 15 runs, 15 extensions, 3 studies, 5 imports and 2 rollouts make 220."""
ONCE = dict.fromkeys(KILLS, 1)
SEED = 20261130
RESULT = Path(__file__).parent / "results" / "kills.json"
"""The counts of the full run, which the threat model shows."""
Make = Callable[[Path], Scene]


def scenes() -> Iterator[Make]:
    """Yield the functions that make the scenes, in a fixed order."""
    for make in (run_scene, extend_scene):
        for modality in OF_MODALITY:
            for method in METHODS:
                yield partial(make, method, modality)
    for modality in OF_MODALITY:
        yield partial(eval_scene, modality)
    for layout in LAYOUTS:
        yield partial(import_scene, layout)
    for policy in POLICIES:
        yield partial(rollout_scene, policy)


def instants_of(scene: Scene, count: int, first: int) -> list[str]:
    """Return instants of a scene: in rotation, every third at random, beginning with number `first`."""
    chosen = list(scene.instants)
    pairs = [(AT_RANDOM, *chosen[k : k + 2]) for k in range(0, len(chosen), 2)]
    order = [instant for pair in pairs for instant in pair]
    return [order[(first + k) % len(order)] for k in range(count)]


def kill_all(
    seed: int, kills: Mapping[str, int], note: Callable[[str], None], arguments: Sequence[str] = ()
) -> dict[str, Any]:
    """Kill every scene as often as its command asks; return the counts and the differences.

    `arguments` are those of the command line, which the result records.
    """
    rows, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills") as name, quickly_trained(Path(name) / "cache"):
        for number, make in enumerate(scenes()):
            folder = Path(name) / str(number)
            scene = make(folder / "scene")
            row = kill_scene(scene, folder, kills[scene.command], number, random.Random(f"{seed} {number}"))
            note(f"{scene.name}: {row['kills']} kills, {len(row['differences'])} differences")
            rows.append(row)
    return {
        "command": shlex.join(["python", "-m", "benchmarks.kills", *arguments]),
        "seed": seed,
        "kills": sum(row["kills"] for row in rows),
        "differences": sum(len(row["differences"]) for row in rows),
        "by command": _summed(rows, "command"),
        "by method": _summed(rows, "method"),
        "by layout": _summed(rows, "layout"),
        "by modality": _summed(rows, "modality"),
        "by instant": dict(sum((Counter(row["instants"]) for row in rows), Counter[str]())),
        "machine": {
            "system": platform.system(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": package_version("torch"),
            "seconds": round(time.monotonic() - begun),
        },
        "scenes": rows,
    }


def kill_scene(scene: Scene, folder: Path, count: int, number: int, dice: random.Random) -> dict[str, Any]:
    """Kill a scene `count` times; return its row of the result."""
    expected = unbroken(scene, folder)
    instants, differences = instants_of(scene, count, 5 * number), []
    for instant in instants:
        try:
            check_kill(scene, expected, instant, folder / "killed", dice)
        except Differs as difference:
            differences.append(str(difference))
    return {
        "command": scene.command,
        # An import trains nothing, and its scene has a layout of weights in place of a method.
        "layout" if scene.command == "import" else "method": scene.method,
        "modality": scene.modality,
        "kills": count,
        "instants": dict(Counter(instants)),
        "differences": differences,
    }


def _summed(rows: list[dict[str, Any]], field: str) -> dict[str, int]:
    """Return the kills by the value of a field, of the rows that have it."""
    counts = Counter[str]()
    for row in rows:
        if field in row:
            counts[row[field]] += row["kills"]
    return dict(counts)


def read_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; `--quick` without `--out` is rejected, with exit code 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--quick", action="store_true", help="kill each command once; needs --out")
    parser.add_argument("--out", type=Path, help=f"file of the result (default: {RESULT.name})")
    options = parser.parse_args(words)
    if options.quick and options.out is None:
        parser.error(f"--quick would replace the counts of the full run in {RESULT}; give it --out FILE")
    return options


def main() -> None:
    words = sys.argv[1:]
    options = read_arguments(words)
    kills = ONCE if options.quick else KILLS
    found = kill_all(options.seed, kills, partial(print, flush=True), words)
    (options.out or RESULT).write_text(json.dumps(found, indent=1) + "\n")
    print(f"{found['kills']} kills, {found['differences']} differences")
    sys.exit(1 if found["differences"] else 0)


if __name__ == "__main__":
    main()
