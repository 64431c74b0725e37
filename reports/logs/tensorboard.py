"""Event files of TensorBoard, read by the `tensorboard` package."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from harness.errors import UserError
from reports.logs.curves import LogCurve, LogPoint, Understood, drop_smoothed
from reports.logs.log_map import LogMap
from reports.logs.names import logged_config, name_run

EVENT_FILES = "*tfevents*"


def event_folders(folder: Path) -> list[Path]:
    """Return the folders at or below this one that hold event files; each is a run."""
    return sorted({file.parent for file in folder.rglob(EVENT_FILES) if file.is_file()})


def read_events(source: Path, rules: LogMap) -> Understood:
    """Return the scalars of an event file, or of all event files of a folder, which are one run.

    Raises `UserError` if `tensorboard` is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise UserError(
            f"{source} holds event files, which the package tensorboard reads: pip install 'flowrace[logs]'"
        ) from error
    logging.getLogger("tensorboard").setLevel(logging.CRITICAL)
    folder = source if source.is_dir() else source.parent
    named = name_run(str(folder), rules, folder.absolute(), logged_config(folder))
    # 0 keeps every value instead of a sample of 10,000. Superseded values are handled below, with a note.
    events = EventAccumulator(
        str(source), size_guidance={"scalars": 0, "tensors": 0}, purge_orphaned_data=False
    )
    try:
        events.Reload()
    # The reader raises errors of several libraries for a damaged file.
    except Exception as error:
        raise UserError(f"cannot read {source}: {str(error) or type(error).__name__}") from error
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    found |= _scalar_tensors(events)
    if not found:
        raise UserError(f"{source}: its event files hold no scalars")
    names, notes = drop_smoothed(source, found)
    curves = [
        LogCurve(
            named.method,
            named.seed,
            rules.metric(tag),
            _points(found[tag], source, tag, rules),
            str(source),
            str(folder),
        )
        for tag in names
    ]
    return Understood(tuple(curves), tuple(notes))


def _points(values: list[tuple[int, float]], source: Path, tag: str, rules: LogMap) -> tuple[LogPoint, ...]:
    return tuple(
        LogPoint(rules.steps_of(step, "steps", str(source)), float(value), f"{source}, {tag} at step {step}")
        for step, value in values
    )


# Any: the accumulator, whose package has no types.
def _scalar_tensors(events: Any) -> dict[str, list[tuple[int, float]]]:
    """Return scalars that TensorFlow 2 wrote as tensors."""
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for tag in events.Tags()["tensors"]:
        values = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        if all(array.size == 1 and array.dtype.kind in "fiu" for _, array in values):
            found[tag] = [(step, float(array.reshape(()))) for step, array in values]
    return found
