"""Claims about success: verdicts from the result at each start of the last evaluation."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from scipy import stats

from harness.config.tables import set_path
from harness.errors import UserError
from harness.records.record_writer import RecordWriter
from reports.audit.inputs.claim import claim_hash
from reports.audit.inputs.success_claim import read_success_claims
from reports.audit.register import NAME, read_register, register_claims, standing
from reports.audit.success import SuccessAudit, judge_success
from reports.race.arms import labels_of, trajectory_fields
from reports.stats.success import difference_levels, levels_of, paired
from sweeps.plan.plan import make_plan
from sweeps.plan.study import load_study
from tests.reports.synthetic import ENVIRONMENT
from tests.support.commands import flowrace

EXAMPLE = Path(__file__).parents[2] / "reports/claims/examples/open-and-place.toml"
METRIC, STARTS = "success@open-and-place", 40
CLAIM: dict[str, object] = {
    "name": "more",
    "candidate": "flow (start.arm = flow)",
    "baseline": "flow",
    "metric": METRIC,
}


def texts(shares: Sequence[float], seed: int = 0) -> list[str]:
    """Return results at the starts, a text for each training seed."""
    drawn = np.random.default_rng(seed).random((len(shares), STARTS))
    return ["".join("01"[int(x < share)] for x in row) for share, row in zip(shares, drawn, strict=True)]


def write(
    folder: Path,
    arm: str,
    results: Sequence[str],
    opened: Sequence[str] | None = None,
    started: float | None = None,
    last_step: int = 20,
    protocol: str = "ab",
) -> None:
    """Write the runs of an arm, whose last evaluation is worse than the one before."""
    environment = ENVIRONMENT | ({} if started is None else {"started": started})
    for seed, last in enumerate(results):
        spec: dict[str, object] = {"seed": seed, "method": {"name": "flow"}, "train": {"batch_size": 8}}
        set_path(spec, "start.arm", arm)
        with RecordWriter(folder / f"{arm or 'scratch'}{seed}") as record:
            record.write_spec(tomli_w.dumps(spec))
            record.begin(environment, after_step=0)
            for step, text in ((10, "1" * STARTS), (last_step, last)):
                rows = {METRIC: text, f"{METRIC}/opened": (opened or results)[seed]}
                metrics = {
                    name: {"mean": one.count("1") / STARTS, "low": 0.0, "high": 1.0, "n": STARTS}
                    | {"successes": one}
                    for name, one in rows.items()
                }
                spent = {"images": 8 * step, "flops": step, "seconds": {"student": 1.0 * step}}
                record.append({"kind": "train", "step": step, "loss": 1.0, **spent})
                about = {"metrics": metrics, "protocol": protocol}
                record.append({"kind": "eval", "step": step, **about, **spent})
            record.finish({"images": 160})


def audited(folder: Path, *rows: dict[str, object]) -> list[SuccessAudit]:
    file = folder / "claims.toml"
    file.write_text(tomli_w.dumps({"success": list(rows)}))
    return judge_success([file], [folder])


def bits(results: Sequence[str]) -> np.ndarray:
    return np.array([[one == "1" for one in text] for text in results])


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [((0.9, 0.8, 0.9), (0.1, 0.2, 0.1), "supported"), ((0.1, 0.1, 0.2), (0.9, 0.9, 0.8), "refuted"),
     ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "inconclusive")],
)  # fmt: skip
def test_verdict_is_that_of_the_interval_over_seeds_and_starts(
    tmp_path: Path, better: tuple[float, ...], worse: tuple[float, ...], verdict: str
) -> None:
    first, second = texts(better), texts(worse, seed=1)
    write(tmp_path, "flow", first)
    write(tmp_path, "", second)
    (found,) = audited(tmp_path, CLAIM)
    assert found.verdict == verdict and found.adjusted is None
    assert found.difference == difference_levels(bits(first), bits(second))
    assert found.pairs == {s: paired(bits(first)[s], bits(second)[s]) for s in range(3)}


def test_gap_beyond_a_stage_is_a_difference_of_differences(tmp_path: Path) -> None:
    first, second, opened = texts((0.8, 0.9, 0.8)), texts((0.1, 0.2, 0.1), 1), texts((0.9, 0.9, 0.9), 2)
    write(tmp_path, "flow", first, opened)
    write(tmp_path, "", second, opened)
    (found,) = audited(tmp_path, {**CLAIM, "beyond": f"{METRIC}/opened"})
    # Both arms open the drawer at the same starts, so the difference stays.
    assert found.difference == levels_of(bits(first).astype(float) - bits(second))
    write(tmp_path / "same", "flow", first)
    write(tmp_path / "same", "", second)
    (found,) = audited(tmp_path / "same", {**CLAIM, "beyond": f"{METRIC}/opened"})
    assert found.difference is not None and found.difference.mean == 0 and found.verdict == "inconclusive"


def test_family_is_adjusted_and_p_is_that_of_students_t(tmp_path: Path) -> None:
    write(tmp_path, "flow", texts((0.7, 0.6, 0.8)))
    write(tmp_path, "", texts((0.4, 0.4, 0.3), 1))
    harder = {**CLAIM, "name": "much more", "difference": 0.3}
    plain, much = audited(tmp_path, CLAIM, harder)
    levels = plain.difference
    assert levels is not None and levels.error is not None and levels.low is not None
    p = 2 * stats.t.sf(abs(levels.mean) / levels.error, levels.degrees)
    assert levels.p_of(0.0) == pytest.approx(p)
    assert levels.low == pytest.approx(levels.mean - stats.t.ppf(0.975, levels.degrees) * levels.error)
    assert plain.adjusted_p == pytest.approx(min(1, 2 * p)) and much.adjusted == "inconclusive"


def test_too_few_training_seeds_decide_nothing(tmp_path: Path) -> None:
    write(tmp_path, "flow", texts((0.9, 0.9)))
    write(tmp_path, "", texts((0.1, 0.1, 0.1), 1))
    (found,) = audited(tmp_path, CLAIM)
    assert found.verdict == "inconclusive" and "2 finished training seeds" in found.reason


def test_perfect_separation_has_the_p_value_of_its_interval(tmp_path: Path) -> None:
    write(tmp_path, "flow", ["1" * STARTS] * 3)
    write(tmp_path, "", ["0" * STARTS] * 3)
    claims = [{**CLAIM, "name": f"by {d}", "difference": d} for d in (0.0, 0.5, 0.95)]
    easy, half, all_but = audited(tmp_path, *claims)
    # The score statistic of no difference is that of McNemar's test without correction.
    assert easy.difference is not None
    assert easy.difference.p_of(0.0) == pytest.approx(stats.chi2.sf(STARTS, 1))
    assert easy.verdict == easy.adjusted == half.verdict == half.adjusted == "supported"
    assert all_but.verdict == all_but.adjusted == "inconclusive"


def test_networks_of_unequal_training_or_protocols_are_not_compared(tmp_path: Path) -> None:
    for name, changed in (("longer", {"last_step": 30}), ("other", {"protocol": "cd"})):
        write(tmp_path / name, "flow", texts((0.9, 0.9, 0.9)), **changed)  # type: ignore[arg-type]
        write(tmp_path / name, "", texts((0.1, 0.1, 0.1), 1))
    (longer,), (other,) = (audited(tmp_path / name, CLAIM) for name in ("longer", "other"))
    assert longer.verdict == other.verdict == "inconclusive"
    assert "at different steps (20, 30)" in longer.reason and "different protocols" in other.reason


def test_training_seeds_that_are_not_compared_are_listed_with_their_status(tmp_path: Path) -> None:
    write(tmp_path, "flow", texts((0.9, 0.9, 0.9, 0.9, 0.9)))
    write(tmp_path, "", texts((0.1, 0.1, 0.1, 0.1, 0.1, 0.1), 1))
    (tmp_path / "flow3" / "done").unlink()
    shutil.rmtree(tmp_path / "scratch4")
    values = [
        (name, {"seed": seed, "method.name": "flow", "start.arm": arm})
        for seed in range(6)
        for name, arm in ((f"flow{seed}", "flow"), (f"scratch{seed}", ""))
        if name not in ("flow5", "scratch5")
    ]
    rows = [{"id": name, "cell": cell, "steps": 20} for name, cell in values]
    (tmp_path / "plan.json").write_text(json.dumps({"runs": rows, "excluded": []}))
    (found,) = audited(tmp_path, CLAIM)
    assert found.seeds == (0, 1, 2) and found.verdict == "supported"
    assert found.left_out == (
        (3, "stopped", "done"),
        (4, "done", "missing"),
        (5, "none", "unplanned"),
    )
    assert found.reason.endswith("seed 5 (candidate none, baseline unplanned)")


def test_labels_of_the_study_and_a_protocol_name_arms_and_evaluations(tmp_path: Path) -> None:
    write(tmp_path, "flow", texts((0.9, 0.9, 0.9)))
    write(tmp_path, "", texts((0.1, 0.1, 0.1), 1))
    (tmp_path / "study.toml").write_text('[labels]\n"flow (start.arm = flow)" = "pretrained"\n')
    (tmp_path / "claims.toml").write_text(tomli_w.dumps({"success": [{**CLAIM, "candidate": "pretrained"}]}))
    shown = flowrace("audit", tmp_path / "claims.toml", tmp_path)
    assert "SUPPORTED" in shown.output
    refused = flowrace("audit", tmp_path / "claims.toml", tmp_path, "--protocol", "sampler_steps=7")
    assert "--protocol sampler_steps=7: no run was evaluated under it" in str(refused.exception)


def test_command_prints_claims_about_success(tmp_path: Path) -> None:
    write(tmp_path, "flow", texts((0.9, 0.8, 0.9)))
    write(tmp_path, "", texts((0.1, 0.2, 0.1), 1))
    (tmp_path / "claims.toml").write_text(tomli_w.dumps({"success": [CLAIM]}))
    shown = flowrace("audit", tmp_path / "claims.toml", tmp_path)
    assert shown.exit_code == 0 and "SUPPORTED  the interval +" in shown.output
    assert shown.output.count("p = ") == 3 and "3 training seeds x 40 starts" in shown.output
    row = json.loads(flowrace("audit", tmp_path / "claims.toml", tmp_path, "--json").output)
    assert row["verdict"] == "supported" and row["difference"]["low"] > 0


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        (1000.0, "registered before the runs"),
        (-10_000.0, "registered during the runs"),
        (-3_600_000.0, "post hoc"),
        (None, "registered, times of runs unknown"),
    ],
)
def test_standing_follows_from_the_times_of_the_arms(
    tmp_path: Path, begun: float | None, expected: str
) -> None:
    """Runs take 20 s. The claim is registered `begun` milliseconds before they start."""
    file = tmp_path / "claims.toml"
    file.write_text(tomli_w.dumps({"success": [CLAIM]}))
    [(entry, new)] = register_claims(tmp_path / NAME, read_success_claims(file))
    assert new and entry.name == CLAIM["name"]
    started = None if begun is None else entry.milliseconds + begun
    write(tmp_path / "runs", "flow", texts((0.9, 0.8, 0.9)), started=started)
    write(tmp_path / "runs", "", texts((0.1, 0.2, 0.1), 1), started=started)
    (found,) = judge_success([file], [tmp_path / "runs"])
    assert found.standing == expected


def test_register_takes_both_kinds_of_claims_and_notices_a_change(tmp_path: Path) -> None:
    file, raced = tmp_path / "claims.toml", {"name": "sooner", "candidate": "a", "baseline": "b"}
    raced |= {"metric": "fd:local", "target": 8.0, "factor": 1.2}
    file.write_text(tomli_w.dumps({"claim": raced, "success": [CLAIM]}))
    for suffix in ("", "  (registered before)"):
        lines = flowrace("audit", "register", file).output.splitlines()
        assert [line.split("  ", 2)[2] for line in lines] == [f"sooner{suffix}", f"more{suffix}"]
    entries = read_register(tmp_path / NAME)
    (claim,) = read_success_claims(file)
    assert entries[claim_hash(claim)].name == "more"
    changed = claim.model_copy(update={"difference": 0.1})
    assert standing(changed, entries, []) == "changed since it was registered"
    altered = (tmp_path / NAME).read_text().replace('"difference": 0.0', '"difference": 0.2')
    (tmp_path / NAME).write_text(altered)
    with pytest.raises(UserError, match="line 2 was altered"):
        read_register(tmp_path / NAME)


@pytest.mark.usefixtures("undrawn")
def test_report_has_the_cards_that_the_audit_prints(tmp_path: Path) -> None:
    runs, file = tmp_path / "runs", tmp_path / "claims.toml"
    write(runs, "flow", texts((0.9, 0.8, 0.9)))
    write(runs, "", texts((0.1, 0.2, 0.1), 1))
    file.write_text(tomli_w.dumps({"success": [CLAIM, {**CLAIM, "name": "by far", "difference": 0.9}]}))
    words = ("report", runs, "-o", tmp_path / "r.html", "--metric", METRIC, "--target", 0.5, "--claim", file)
    shown = flowrace(*words)
    assert shown.exit_code == 0, shown.output
    assert [line.partition(":")[0] for line in shown.output.splitlines()[:2]] == ["SUPPORTED", "REFUTED"]
    page = " ".join(re.sub(r"<[^>]*>|\s", " ", (tmp_path / "r.html").read_text()).split())
    for line in flowrace("audit", file, runs).output.splitlines():
        for part in re.split(r"\s{2,}| \(|\), |adjusted \(Holm\).*|SUPPORTED|REFUTED", line.strip()):
            assert part.strip('"') in page, part


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"metric": "fd:local"}, "expected success@TASK"),
        ({"baseline": "flow (start.arm = flow)"}, "candidate and baseline are both"),
        ({"beyond": METRIC}, "two different successes"),
        ({"beyond": "success@pusht/opened"}, "is no stage of the task of success@open-and-place"),
        ({"diference": 0.1}, "Did you mean 'difference'"),
        ({"baseline": "repa"}, "unknown arm of the claim 'repa'"),
        ({"metric": "success@pusht"}, "has no success@pusht at its last evaluation"),
    ],
)
def test_claim_that_cannot_be_judged_is_rejected(
    tmp_path: Path, changed: dict[str, object], expected: str
) -> None:
    write(tmp_path, "flow", texts((0.9, 0.8, 0.9)))
    write(tmp_path, "", texts((0.1, 0.2, 0.1), 1))
    (tmp_path / "claims.toml").write_text(tomli_w.dumps({"success": [CLAIM | changed]}))
    refused = flowrace("audit", tmp_path / "claims.toml", tmp_path)
    assert refused.exit_code == 2 or refused.exception is not None
    assert expected in refused.output + str(refused.exception)


@pytest.mark.slow
def test_claims_of_the_example_are_about_arms_of_its_study() -> None:
    runs = make_plan(load_study("open-and-place")).runs
    fields = [trajectory_fields(run.spec.model_dump(mode="json")) for run in runs]
    labels = set(labels_of({json.dumps(one, sort_keys=True): one for one in fields}).values())
    assert len(runs) == 3 * len(labels) == 42
    for claim in read_success_claims(EXAMPLE):
        assert {claim.candidate, claim.baseline} <= labels
