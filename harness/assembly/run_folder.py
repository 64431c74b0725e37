"""The folder of a run: named by its id, or by that of an earlier version."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from harness.assembly.resolve import is_run, load_spec
from harness.config.spec import RunSpec
from harness.errors import UserError
from harness.records.record import SPEC, Record


def run_folder(out: Path, spec: RunSpec) -> Path:
    """Return the folder of a run in `out`, which may not exist yet.

    Versions up to 0.1 named a run by its evaluation and its number of steps too. Such a folder is continued:
    that of exactly this spec, or else the one of the same trajectory that got furthest.
    """
    for name in (spec.id, spec.legacy_id):
        if is_run(out / name):
            return out / name
    older = [folder for folder in _folders(out) if _has_trajectory(folder, spec)]
    return max(older, key=lambda folder: (Record(folder).last_step, folder.name), default=out / spec.id)


def is_named_by(folder: Path, spec: RunSpec) -> bool:
    """Return whether a folder has the name under which its run was started."""
    names = {start.get("run") for start in Record(folder).environment}
    return folder.resolve().name in {spec.id, spec.legacy_id, *names}


def check_named(folder: Path, spec: RunSpec) -> None:
    """Raise `UserError` if a folder is not named by its spec's run id: a new run would start next to it."""
    if not is_named_by(folder, spec):
        raise UserError(
            f"{folder} does not match the run id {spec.id} in its {SPEC}. Rename the folder to resume that "
            f"run, or pass {folder / SPEC} to flowrace run to start a new one"
        )


def _folders(out: Path) -> list[Path]:
    return sorted(file.parent for file in out.glob(f"*/{SPEC}")) if out.is_dir() else []


def _has_trajectory(folder: Path, spec: RunSpec) -> bool:
    file = folder / SPEC
    status = file.stat()
    stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return (spec.seed, spec.method.name) == _seed_and_method(file, stamp) and spec.id == _id(file, stamp)


@lru_cache(maxsize=4096)
def _seed_and_method(file: Path, stamp: tuple[int, ...]) -> tuple[int, str] | None:
    try:
        table = Record(file.parent).spec
        return table.get("seed", 0), table["method"]["name"]
    except (UserError, KeyError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=4096)
def _id(file: Path, stamp: tuple[int, ...]) -> str | None:
    from harness.data.pin import pinned

    try:
        # Versions up to 0.1 did not pin the content of an encoder's file.
        found = pinned(load_spec(str(file.parent)))
    except UserError:
        return None
    # A folder that was copied under another name is not the run that it names.
    return found.id if is_named_by(file.parent, found) else None
