"""A finished study of two tiny runs, trained in this process."""

from __future__ import annotations

import json
from pathlib import Path

from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study
from sweeps.plan.study_folder import write_plan
from tests.support.runs import TINY, tiny, trained


def finished_study(parent: Path) -> Path:
    """Return the folder of a study of two seeds with three evaluations each; its file is next to it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder, file = parent / "two", parent / "two.toml"
    values = dict(word.split("=") for word in (*TINY, "eval.every=4"))
    settings = "\n".join(
        f'"{name}" = {value if value[0].isdigit() else json.dumps(value)}' for name, value in values.items()
    )
    file.write_text(f'name = "two"\nbase = "digits"\n[axes]\nseed = [0, 1]\n[set]\n{settings}\n')
    write_plan(study := load_study(str(file)), make_plan(study), folder)
    for seed in (0, 1):
        trained(tiny("eval.every=4", f"seed={seed}"), folder)
    return folder
