"""One later evaluation as it is recorded: its line, its protocol and its sample grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.spec import RunSpec
from harness.records.evaluations import Conditions, add_evaluation
from harness.records.record import Record

if TYPE_CHECKING:
    from harness.evaluation.evaluator import Evaluator
    from harness.evaluation.result import Result


def record_evaluation(
    path: Path, spec: RunSpec, step: int, conditions: Conditions, result: Result, evaluator: Evaluator
) -> None:
    """Append an evaluation to the record, after its sample grid."""
    from harness.evaluation.protocol import digest

    record = Record(path)
    protocol = evaluator.about
    if conditions.ema != "float32":
        protocol = {**protocol, "ema_precision": conditions.ema}
    if not any(one.step == step and one.conditions == conditions for one in record.evaluations):
        result.save_grid(path / "samples" / f"step-{step:08d}-{conditions.key}.png")
    about = {"protocol": protocol, "floor": evaluator.noise_floor, "aligned": _aligned(record, evaluator)}
    line = {
        "kind": "eval",
        "step": step,
        "images": step * spec.train.batch_size,
        "metrics": result.rows,
        "protocol": digest(protocol),
        **({"errors": result.errors} if result.errors else {}),
    }
    add_evaluation(path, line, about)


def _aligned(record: Record, evaluator: Evaluator) -> list[str]:
    """Return the metrics that are computed by an encoder to which the run aligned."""
    encoders = [encoder for start in record.environment for encoder in start.get("encoders", ())]
    return evaluator.aligned_metrics(
        {encoder["name"] for encoder in encoders}, {encoder.get("sha256") for encoder in encoders}
    )
