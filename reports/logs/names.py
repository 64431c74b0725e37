"""Method and seed of a run from its name: `self_flow-seed0`, `repa_s1`, `flow seed=2`, `flow/seed3`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from harness.errors import UserError
from harness.files.parse import parse_json
from reports.logs.log_map import EXAMPLE, LogMap, NamedRun

SEED = re.compile(r"seed[\s_=:.-]*(\d+)(?![A-Za-z0-9])", re.IGNORECASE)
SHORT_SEED = re.compile(r"(?<=[\s_\-./,])s[=_]?(\d+)$")
SEPARATORS = " \t_-./,=:|"
GENERIC = re.compile(
    r"^(?:version_\d+|checkpoint-\d+|files|(?:lightning_|tensorboard_?)?logs?|tb|events?|eval|val|valid|"
    r"validation|"
    r"test|train|metrics|trainer_state|wandb-summary|run)$",
    re.IGNORECASE,
)
"""Folders and suffixes that loggers add to the name of a run."""
SAMPLES = re.compile(r"-size-\d+-.*-seed-\d+", re.IGNORECASE)
"""Names of the sample folders of DiT and SiT, whose seed is that of sampling."""
TAIL = 4
"""Folders of a path that may belong to the name of a run."""


def name_run(
    name: str, rules: LogMap, path: Path | None = None, config: Mapping[str, Any] | None = None
) -> NamedRun:
    """Return the method and the seed of a run.

    The first of these counts: the map's run of this name, its pattern, the logged `config`, the grammar of
    names. `path` is searched too, from the last folder up. Raises `UserError` that shows what was seen if
    they are not clear.
    """
    # A log of the working folder.
    name = path.name if path is not None and name == "." else name
    found = rules.runs.get(name) or _by_pattern(name, path, rules)
    if found is None:
        found = _by_grammar([name] if path is None else tails(path), config or {}, name)
    method = normalize("NFC", found.method.strip())
    return NamedRun(method=rules.methods.get(method, method), seed=found.seed)


def tails(path: Path) -> list[str]:
    """Return the ends of a path without the folders that loggers add, the shortest first.

    >>> tails(Path("runs/flow/seed0/version_0"))
    ['seed0', 'flow/seed0', 'runs/flow/seed0']
    """
    parts = [part for part in path.parts if part not in ("/", ".", "..") and not GENERIC.match(part)]
    return ["/".join(parts[-count:]) for count in range(1, min(TAIL, len(parts)) + 1)]


def logged_config(folder: Path) -> dict[str, Any]:
    """Return `method` and `seed` as far as a file of settings in this folder states them."""
    import yaml

    found: dict[str, Any] = {}
    for name in ("config.yaml", "hparams.yaml", "args.json", "config.json"):
        try:
            text = (folder / name).read_text(encoding="utf-8-sig")
            table = parse_json(text) if name.endswith(".json") else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(table, Mapping):
            found |= {key: value for key, value in _settings(table).items() if value is not None}
    return found


def _settings(table: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the method and the seed of a table, whose values W&B wraps as `{value: ...}`."""
    plain = {key: v["value"] if isinstance(v, Mapping) and "value" in v else v for key, v in table.items()}
    method = plain.get("method", plain.get("method.name"))
    method = method.get("name") if isinstance(method, Mapping) else method
    seed = plain.get("seed")
    return {
        "method": method if isinstance(method, str) else None,
        "seed": seed if isinstance(seed, int) and not isinstance(seed, bool) else None,
    }


def _by_pattern(name: str, path: Path | None, rules: LogMap) -> NamedRun | None:
    if rules.pattern is None:
        return None
    pattern = re.compile(rules.pattern)
    texts = [name, *(tails(path) if path else [])]
    match = next((m for m in map(pattern.fullmatch, texts) if m), None)
    match = match or next((m for m in map(pattern.search, texts) if m), None)
    if match is None:
        raise UserError(f"pattern '{rules.pattern}' does not match the run '{name}'")
    if not re.fullmatch("[0-9]+", match["seed"] or ""):
        raise UserError(
            f"pattern '{rules.pattern}' finds the seed '{match['seed']}' in '{name}': expected a number"
        )
    return NamedRun(method=match["method"], seed=int(match["seed"]))


def _by_grammar(names: Sequence[str], config: Mapping[str, Any], shown: str) -> NamedRun:
    method, seed = config.get("method"), config.get("seed")
    for text in names:
        found = split_name(text)
        if found is None:
            continue
        if seed is not None and found[1] != seed:
            raise UserError(f"run '{shown}': its name has seed {found[1]}, its settings have seed {seed}")
        seed = found[1]
        method = method or found[0]
        if method:
            break
    if method and seed is not None:
        return NamedRun(method=method, seed=seed)
    missing = " and ".join(
        what for what, value in (("method", method), ("seed", seed)) if value in (None, "")
    )
    raise UserError(
        f"the name of run '{shown}' does not give its {missing} (expected for example self_flow-seed0, "
        "repa_s1 or "
        f"flow seed=2); describe how it is built: {EXAMPLE}, or list it in [runs] of --map"
    )


def split_name(name: str) -> tuple[str, int] | None:
    """Return the method (may be empty) and the seed of a name; None if it has no seed.

    Raises `UserError` if the name has several seeds, or the seed of sampling.

    >>> split_name("repa-seed1-b256")
    ('repa-b256', 1)
    """
    if SAMPLES.search(name):
        raise UserError(
            f"'{name}' names a folder of samples, whose seed is that of sampling; give the training seed "
            f"by {EXAMPLE}"
        )
    found = list(SEED.finditer(name)) or list(SHORT_SEED.finditer(name))
    if not found:
        return None
    if len(found) > 1:
        raise UserError(f"run '{name}' names several seeds; describe which counts: {EXAMPLE}")
    before, after = name[: found[0].start()], name[found[0].end() :]
    parts = [part.strip(SEPARATORS) for part in (before, after)]
    return "-".join(part for part in parts if part and not GENERIC.match(part)), int(found[0][1])
