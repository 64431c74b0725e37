"""The log of finished trials: Optuna's journal file with one line per trial, so that a kill leaves no partial
trial."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.files.files import cut_torn_line

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

TRIAL_LOG = "optuna.journal"


@dataclass(frozen=True)
class Trial:
    """A finished trial: a point of a method's search space and its results."""

    method: str
    number: int
    params: dict[str, Any]
    """The searched settings by spec path."""
    steps: int
    flops: int
    """Counted FLOPs of all its runs."""
    runs: dict[int, str]
    """Run ids by tuning seed."""
    values: dict[int, float]
    """The metric by tuning seed; infinity for a run that diverged."""
    pruned: bool

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())


class TrialLog:
    """Optuna's journal in a study's folder, with one Optuna study per method.

    One process at a time may hold it.
    """

    def __init__(self, directory: Path, study: str) -> None:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self.file = directory / TRIAL_LOG
        _repair(self.file)
        self._name = study
        self._studies: dict[str, optuna.Study] = {}
        try:
            self._storage = JournalStorage(JournalFileBackend(str(self.file)))
        except (ValueError, KeyError) as error:
            raise UserError(f"{self.file} is not an Optuna journal: {error}") from error

    def trials(self, method: str) -> list[Trial]:
        """Return the trials of a method in the order in which they were added."""
        return [_read(method, trial) for trial in self._study(method).get_trials(deepcopy=False)]

    def add(self, trial: Trial, distributions: dict[str, BaseDistribution]) -> None:
        """Append a finished trial."""
        from optuna.trial import create_trial

        plain = {name: getattr(trial, name) for name in ("steps", "flops", "pruned")}
        by_seed = {
            "runs": {str(seed): run for seed, run in trial.runs.items()},
            "values": {str(seed): value for seed, value in trial.values.items()},
        }
        frozen = create_trial(
            value=trial.mean,
            params=trial.params,
            distributions=distributions,
            intermediate_values=trial.values,
            user_attrs={**plain, **by_seed},
        )
        self._study(trial.method).add_trial(frozen)

    def _study(self, method: str) -> optuna.Study:
        import optuna

        if method not in self._studies:
            name = f"{self._name}/{method}"
            known = name in optuna.get_all_study_names(self._storage)
            make = optuna.load_study if known else optuna.create_study
            self._studies[method] = make(storage=self._storage, study_name=name)
        return self._studies[method]


def _read(method: str, trial: FrozenTrial) -> Trial:
    logged = trial.user_attrs
    return Trial(
        method=method,
        number=trial.number,
        params=trial.params,
        steps=logged["steps"],
        flops=logged["flops"],
        runs={int(seed): run for seed, run in logged["runs"].items()},
        values={int(seed): value for seed, value in logged["values"].items()},
        pruned=logged["pruned"],
    )


def _repair(file: Path) -> None:
    """Remove what a killed writer left: an incomplete last line, and Optuna's own lock (the folder's lock is
    held)."""
    for lock in file.parent.glob(f"{file.name}.lock*"):
        lock.unlink()
    if file.exists() and not file.read_bytes().endswith(b"\n"):
        with open(file, "r+b") as log:
            cut_torn_line(log)
