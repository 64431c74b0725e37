"""The history of a search: Optuna's journal, one line a finished trial, so that a kill leaves a whole trial or none."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError

JOURNAL = "optuna.journal"


@dataclass(frozen=True)
class Trial:
    """A finished trial: a point of a method's space and what came of it."""

    method: str
    number: int
    params: dict[str, Any]
    """By spec path."""
    steps: int
    flops: int
    """Counted, of its runs together."""
    runs: dict[int, str]
    """By tuning seed, ids."""
    values: dict[int, float]
    """By tuning seed, the metric; infinity where a run had none."""
    pruned: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())


class Journal:
    """Optuna's journal file in a study's folder; one Optuna study a method. Held by one process at a time."""

    def __init__(self, directory: Path, study: str) -> None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.file = directory / JOURNAL
        _mend(self.file)
        self._name, self._studies = study, {}
        try:
            self._storage = JournalStorage(JournalFileBackend(str(self.file)))
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.file} is not an Optuna journal: {error}") from error

    def trials(self, method: str) -> list[Trial]:
        """In the order in which they were told."""
        return [_read(method, trial) for trial in self._study(method).get_trials(deepcopy=False)]

    def add(self, trial: Trial, distributions: dict[str, Any]) -> None:
        from optuna.trial import create_trial

        said = {name: getattr(trial, name) for name in ("steps", "flops", "pruned")}
        by_seed = {
            "runs": {str(seed): run for seed, run in trial.runs.items()},
            "values": {str(seed): value for seed, value in trial.values.items()},
        }
        frozen = create_trial(
            value=trial.mean,
            params=trial.params,
            distributions=distributions,
            intermediate_values=trial.values,
            user_attrs={**said, **by_seed},
        )
        self._study(trial.method).add_trial(frozen)

    def _study(self, method: str) -> Any:
        import optuna

        if method not in self._studies:
            name = f"{self._name}/{method}"
            known = name in optuna.get_all_study_names(self._storage)
            make = optuna.load_study if known else optuna.create_study
            self._studies[method] = make(storage=self._storage, study_name=name)
        return self._studies[method]


def _read(method: str, trial: Any) -> Trial:
    said = trial.user_attrs
    runs = {int(seed): run for seed, run in said["runs"].items()}
    values = {int(seed): value for seed, value in said["values"].items()}
    return Trial(
        method, trial.number, trial.params, said["steps"], said["flops"], runs, values, said["pruned"]
    )


def _mend(file: Path) -> None:
    """Drop what a killed writer left: a line without an end, and a lock that nobody holds (the folder is ours)."""
    for left in file.parent.glob(f"{file.name}.lock*"):
        left.unlink()
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with open(file, "r+b") as journal:
                journal.truncate(whole)
