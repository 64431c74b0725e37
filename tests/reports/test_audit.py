"""`flowrace audit` from files to verdicts: closed forms on all axes, every precondition, and the output."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from reports.audit.audit import adjust_family, audit_claim
from reports.audit.inputs.claim import Tuning, claim_hash
from reports.audit.inputs.read import read_logs
from reports.audit.inputs.run_log import AuditRun, AuditRuns
from reports.cli.audit import audit as command
from reports.cli.audit_card import audit_json, notes
from reports.stats.curves import Costs, fit
from tests.reports.audits import GRID, claim, claim_file, falling, reason_names, rows, run_audit, write_csv
from tests.reports.synthetic import power_law

KEYS = {"verdict", "reasons", "direction", "axes", "n_pairs", "censored", "detectable_factor", "claim_hash"}
COSTS = {
    "images": {"old": 256.0, "new": 256.0},
    "flops": {"old": 1e9, "new": 2e9},
    "seconds": {"old": 0.1, "new": 0.15},
    "gpu_seconds": {"old": 0.8, "new": 1.2},
}


def audited(folder: Path, lines: list, tuning: dict | None = None, **changes) -> dict:
    judged_claim = claim(**changes)
    logs = read_logs([str(write_csv(folder / "curves.csv", lines))], judged_claim)
    return audit_json(audit_claim(judged_claim, logs, tuning))


def test_audit_of_a_csv_has_speedups_on_all_axes(tmp_path: Path) -> None:
    """The candidate is 2.2x faster in steps, at twice the FLOPs and 1.5 times the seconds per step."""
    file = write_csv(tmp_path / "curves.csv", rows({"old": 1.0, "new": 2.2}, costs=COSTS))
    found = run_audit(str(claim_file(tmp_path)), str(file))
    assert found.keys() >= KEYS
    assert (found["verdict"], found["direction"], found["n_pairs"]) == ("supported", "faster", 5)
    assert found["censored"] == {"old": 0, "new": 0} and found["claim_hash"] == claim_hash(claim())
    steps = found["axes"]["steps"]["speedup"]
    for axis, dearer in (("images", 1), ("flops", 2), ("seconds", 1.5), ("gpu_seconds", 1.5)):
        assert found["axes"][axis]["speedup"] == pytest.approx(steps / dearer, rel=1e-6)
        assert found["axes"][axis]["low"] < found["axes"][axis]["speedup"] < found["axes"][axis]["high"]
    on_flops = run_audit(str(claim_file(tmp_path, axis="flops")), str(file))
    assert on_flops["verdict"] == "refuted" and on_flops["axes"] == found["axes"]


def test_interval_equals_scipys_for_exact_power_laws(tmp_path: Path) -> None:
    """On straight lines in logs the time to target is known exactly: 100k / speed of the run."""
    lines = rows({"old": 1.0, "new": 2.0})
    found = audited(tmp_path, lines)["axes"]["steps"]
    first = {(row["method"], row["seed"]): row["value"] for row in lines if row["step"] == GRID[0]}
    times = {key: GRID[0] * (value / 12) ** 2 for key, value in first.items()}
    base, cand = ([math.log(times[method, seed]) for seed in range(5)] for method in ("old", "new"))
    reference = stats.ttest_rel(base, cand).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx(
        (math.exp(reference.low), math.exp(reference.high)), rel=1e-6
    )


@pytest.mark.parametrize(
    ("speed", "changes", "verdict"),
    [
        (2.0, {}, "supported"),
        (1.5, {}, "refuted"),
        (1.82, {}, "inconclusive"),
        (2.0, {"kind": "equal"}, "supported"),
        (2.6, {"kind": "equal"}, "refuted"),
        (2.6, {}, "supported"),
        (2.0, {"confidence": 0.999999}, "inconclusive"),
    ],
)
def test_verdict_follows_from_the_interval_and_the_claim(
    tmp_path: Path, speed: float, changes: dict, verdict: str
) -> None:
    found = audited(tmp_path, rows({"old": 1.0, "new": speed}), **changes)
    assert found["verdict"] == verdict and reason_names(found) == ["interval"]


def test_target_at_a_step_is_the_baselines_median(tmp_path: Path) -> None:
    """baseline@100000 of exact curves is 12. Runs on tuning seeds set the target and are in no pair."""
    lines = rows({"old": 1.0, "new": 2.0}, noise=0.0)
    found = audited(tmp_path, lines, target="baseline@100000")
    assert found["target"] == pytest.approx(12) and found["axes"]["steps"]["speedup"] == pytest.approx(2)
    assert any("median at step 100000" in note for note in found["notes"])
    slow = rows({"old": 0.25}, seeds=[100, 101], noise=0.0)
    tuned = audited(
        tmp_path,
        lines + slow,
        target="baseline@100000",
        tuning={"old": Tuning(trials=2, seeds=(100, 101)), "new": Tuning(trials=2)},
    )
    assert tuned["target"] == pytest.approx(24) and tuned["n_pairs"] == 5
    beyond = audited(tmp_path, lines, target="baseline@500000")
    assert beyond["verdict"] == "inconclusive" and reason_names(beyond) == ["target"]


def test_censored_baselines_leave_the_high_end_open(tmp_path: Path) -> None:
    """The baseline never reaches the target. The candidate does early enough, so 2x is supported."""
    found = audited(tmp_path, rows({"old": 0.2, "new": 0.75}))
    assert found["verdict"] == "supported" and found["censored"] == {"old": 5, "new": 0}
    steps = found["axes"]["steps"]
    assert steps["high"] is None and 2.8 < steps["low"] < 3.0
    assert found["reached"]["curves"]["old"] == [[0.0, 0.0]] or found["reached"]["curves"]["old"] == [
        (0.0, 0.0)
    ]
    none = audited(tmp_path, rows({"old": 0.75, "new": 0.2}))
    assert none["verdict"] == "refuted" and none["axes"]["steps"]["low"] is None


PROTOCOL = {"protocol": "heun, 50k"}


@pytest.mark.parametrize(
    ("name", "lines", "changes"),
    [
        ("pairs", rows({"old": 1.0, "new": 2.0}, seeds=[0, 1]), {}),
        ("pairs", rows({"old": 1.0, "new": 2.0}, seeds=[0]), {}),
        ("protocol", rows({"old": 1.0}, protocol="ode, 10k") + rows({"new": 2.0}, protocol="sde, 50k"), {}),
        ("protocol", rows({"old": 1.0}, protocol="") + rows({"new": 2.0}, protocol="sde, 50k"), {}),
        ("target", rows({"old": 1.0, "new": 2.0}), {"target": 0.5}),
        ("target", rows({"old": 1.0, "new": 2.0}), {"target": 500}),
        ("bracket", rows({"old": 1.0, "new": 2.0}, grid=[10_000, 300_000, 400_000]), {}),
        ("rising", [row | {"value": 100 / row["value"]} for row in rows({"old": 1.0, "new": 2.0})], {}),
        ("units", rows({"old": 1.0}) + rows({"new": 2000.0}, grid=[step // 1000 for step in GRID]), {}),
        (
            "units",
            rows({"old": 1.0, "new": 2.0}, costs={"seconds": {"old": 0.1, "new": 0.1 / 3600}}),
            {},
        ),
    ],
)
def test_failed_precondition_is_named(tmp_path: Path, name: str, lines: list, changes: dict) -> None:
    found = audited(tmp_path, lines, **changes)
    assert found["verdict"] == "inconclusive" and name in reason_names(found)


@pytest.mark.parametrize(
    ("name", "tuning"),
    [
        ("tuning", {"old": Tuning(trials=5), "new": Tuning(trials=50)}),
        ("tuning", {"new": Tuning(trials=50)}),
        ("tuning", {"old": Tuning(trials=5, flops=1e15), "new": Tuning(trials=5, flops=2e15)}),
        ("reused seeds", {"old": Tuning(trials=5), "new": Tuning(trials=5, seeds=(3,))}),
    ],
)
def test_unequal_tuning_is_named(tmp_path: Path, name: str, tuning: dict) -> None:
    found = audited(tmp_path, rows({"old": 1.0, "new": 2.2}), tuning)
    assert found["verdict"] == "inconclusive" and reason_names(found) == [name]
    fair = {"old": Tuning(trials=5), "new": Tuning(trials=5, seeds=(77,))}
    assert audited(tmp_path, rows({"old": 1.0, "new": 2.2}), fair)["verdict"] == "supported"


def test_mixed_protocols_give_no_number(tmp_path: Path) -> None:
    found = audited(
        tmp_path, rows({"old": 1.0}, protocol="ode, 10k") + rows({"new": 2.0}, protocol="sde, 50k")
    )
    assert found["axes"]["steps"] == {"speedup": None, "low": None, "high": None} and found["n_pairs"] == 5
    assert "ode, 10k" in found["reasons"][0] and "sde, 50k" in found["reasons"][0]


def test_unequal_grids_do_not_prevent_a_verdict(tmp_path: Path) -> None:
    found = audited(tmp_path, rows({"old": 1.0}) + rows({"new": 2.2}, grid=range(2000, 400_001, 2000)))
    assert found["verdict"] == "supported"


def test_unshared_seeds_give_welchs_interval(tmp_path: Path) -> None:
    found = audited(tmp_path, rows({"old": 1.0}) + rows({"new": 2.2}, seeds=range(10, 16)))
    assert (found["verdict"], found["paired"], found["n_pairs"]) == ("supported", False, 5)


def humped(top: dict[range, float]) -> list[dict]:
    """Return curves whose candidate reaches the target at step 40k and has these values from 100k on."""
    lines = rows({"old": 1.0, "new": 2.5}, noise=0.002)
    for row in lines:
        for steps, value in top.items():
            if row["method"] == "new" and row["step"] in steps:
                row["value"] = value
    return lines


def test_sustained_crossing_counts_when_curves_get_worse(tmp_path: Path) -> None:
    """The candidate is above the target from 100k to 300k, and below it again afterwards."""
    lines = humped({range(100_000, 300_001): 18.0, range(300_001, 400_001): 9.0})
    found = audited(tmp_path, lines)
    assert found["verdict"] == "refuted" and found["axes"]["steps"]["speedup"] < 0.35
    assert found["first_crossing"]["speedup"] == pytest.approx(2.5, rel=0.01)
    assert any("get worse again" in note for note in found["notes"])


def test_target_that_is_passed_and_lost_is_not_reached(tmp_path: Path) -> None:
    found = audited(tmp_path, humped({range(100_000, 400_001): 18.0}))
    assert found["verdict"] == "refuted" and found["censored"]["new"] == 5
    assert any("5 runs passed the target and got worse again" in note for note in found["notes"])


def test_decline_that_the_fit_pools_is_noted(tmp_path: Path) -> None:
    """Values of 3 outweigh later ones of 14, so the fit stays below 12; a note names runs that end above."""
    found = audited(tmp_path, humped({range(100_000, 275_000): 3.0, range(275_000, 400_001): 14.0}))
    assert found["censored"]["new"] == 0
    assert any("5 runs are above the target again" in note for note in found["notes"])


def test_dual_check_agrees_only_on_shifted_copies(tmp_path: Path) -> None:
    """Lines of equal slope are shifted copies. A flatter line is 2x faster at 12, but worse at the end."""
    shifted = audited(tmp_path, rows({"old": 1.0, "new": 2.0}))
    speedup = shifted["axes"]["steps"]["speedup"]
    assert shifted["dual"]["step"] == 400_000 and shifted["dual"]["speedup"] == pytest.approx(
        speedup, rel=1e-6
    )
    assert shifted["slopes"] == {"old": pytest.approx(-0.5), "new": pytest.approx(-0.5)}
    assert [row["speedup"] for row in shifted["by_target"]] == [pytest.approx(speedup)] * 7
    lines = rows({"old": 1.0, "new": 2.0}, noise=0.002)
    for row in lines:
        row["value"] = 12 * (row["step"] / 50_000) ** -0.2 if row["method"] == "new" else row["value"]
    other = audited(tmp_path, lines)
    assert other["axes"]["steps"]["speedup"] == pytest.approx(2, rel=0.01) and other["dual"]["speedup"] < 1
    assert any("not shifted copies" in note for note in other["notes"])


def test_more_pairs_are_enough_and_not_too_many(tmp_path: Path) -> None:
    found = audited(tmp_path, rows({"old": 1.0, "new": 2.0}, seeds=range(3), noise=0.06))
    assert found["verdict"] == "inconclusive" and 1 <= found["more_pairs"] < 40
    enough = audited(
        tmp_path, rows({"old": 1.0, "new": 2.0}, seeds=range(3 + 2 * found["more_pairs"]), noise=0.06)
    )
    assert enough["verdict"] == "supported" and enough["more_pairs"] == 0
    open_end = audited(tmp_path, rows({"old": 0.2, "new": 0.44}))
    assert open_end["verdict"] == "inconclusive" and open_end["more_pairs"] is None


def test_family_is_adjusted(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "curves.csv", rows({"old": 1.0, "new": 2.0}, seeds=range(4)))
    logs = read_logs([str(file)], claim())
    factors = [2.0, 2.07, 2.08, 2.09, 1.0]
    found = adjust_family([audit_claim(claim(name=str(factor), factor=factor), logs) for factor in factors])
    p = [one.p for one in found]
    reference = [min(1, p_) for p_ in _holm_by_hand(p)]
    assert [one.adjusted_p for one in found] == pytest.approx(reference)
    for one in found:
        assert one.adjusted == (one.verdict if one.adjusted_p <= 0.05 else "inconclusive")
        assert (one.verdict == "inconclusive") == (one.p > 0.05)


def _holm_by_hand(p: list[float]) -> list[float]:
    return [max(min(1, (len(p) - sum(b < a for b in p)) * a) for a in p if a <= own) for own in p]


def test_card_fits_80_columns_and_has_the_verdicts(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "curves.csv", rows({"old": 1.0, "new": 2.2}, costs=COSTS))
    one = claim_file(tmp_path)
    found = CliRunner().invoke(
        command, [str(one), str(claim_file(tmp_path, "b.toml", factor=3.0)), str(file)]
    )
    assert found.exit_code == 0 and max(map(len, found.stdout.splitlines())) <= 80
    words = " ".join(found.stdout.split())
    why = "interval: its low end is at or above what the claim needs (1.82x)"
    assert f"SUPPORTED at least 2.00x, allowing 10 %; {why}" in words
    assert "REFUTED" in found.stdout and "p (Holm)" in found.stdout


def test_user_texts_are_printed_without_markup(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "curves.csv", rows({"[old]": 1.0, "[/new]": 2.2}))
    words = [str(claim_file(tmp_path, baseline="[old]", candidate="[/new]", name="[red]x[/red]")), str(file)]
    found = CliRunner().invoke(command, words, catch_exceptions=False)
    assert (
        found.exit_code == 0
        and "[red]x[/red]" in found.stdout
        and "than [old]" in " ".join(found.stdout.split())
    )


def test_missing_protocol_and_hardware_are_noted(tmp_path: Path) -> None:
    judged_claim = claim(axis="seconds")
    logs = read_logs(
        [str(write_csv(tmp_path / "c.csv", rows({"old": 1.0, "new": 2.2}, costs=COSTS)))], judged_claim
    )
    found = notes(audit_claim(judged_claim, logs))
    assert any("no evaluation protocol" in note for note in found) and any(
        "no hardware" in note for note in found
    )


def test_needs_no_torch_and_no_mlflow(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "curves.csv", rows({"old": 1.0, "new": 2.2}))
    code = (
        "import sys; from click.testing import CliRunner; from reports.cli.audit import audit\n"
        f"assert CliRunner().invoke(audit, [{str(claim_file(tmp_path))!r}, {str(file)!r}]).exit_code == 0\n"
        "assert not {'torch', 'mlflow', 'pandas', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent.parent)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    values=st.lists(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=7), min_size=2, max_size=8),
    target=st.sampled_from([1e-2, 3.0, 50.0, 1e5, "baseline@3"]),
    kind=st.sampled_from(["at_least", "equal"]),
    confidence=st.sampled_from([0.5, 0.95, 0.999]),
    paired=st.booleans(),
)
def test_any_curves_have_a_verdict(values, target, kind, confidence, paired) -> None:
    """Any curves give a verdict with reasons, ordered ends and a valid JSON object."""
    arms = values[::2], values[1::2]
    logs = AuditRuns(
        *(
            {i + (not paired) * 10 * k: curve_log(rows) for i, rows in enumerate(arm)}
            for k, arm in enumerate(arms)
        )
    )
    found = audit_json(audit_claim(claim(target=target, kind=kind, confidence=confidence), logs))
    json.dumps(found, allow_nan=False)
    assert found["verdict"] in ("supported", "refuted", "inconclusive") and found["reasons"]
    assert found["n_pairs"] >= 3 or found["verdict"] == "inconclusive"
    steps = found["axes"]["steps"]
    if steps["low"] is not None and steps["high"] is not None:
        assert steps["low"] <= steps["speedup"] * (1 + 1e-9) and steps["speedup"] <= steps["high"] * (
            1 + 1e-9
        )


def curve_log(values: list[float]) -> AuditRun:
    steps = np.arange(1.0, len(values) + 1)
    totals = np.array([0.0, *steps])
    return AuditRun("any", 0, "here", fit(steps, values), Costs(totals, {"steps": totals}))


def test_falling_equals_the_power_law_of_the_other_tests() -> None:
    assert power_law(12 * math.sqrt(100_000), 0.5)(40_000) == pytest.approx(falling(1.0)(40_000))


def test_tolerance_is_zero_unless_the_claim_sets_it_and_is_printed_if_set(tmp_path: Path) -> None:
    """Exactly 1.9x: a claim of 2.0x is refuted, and supported if it allows 10 % (2.0 / 1.1 = 1.82)."""
    lines = rows({"old": 1.0, "new": 1.9}, noise=0.0)
    strict, lenient = (audited(tmp_path, lines, tolerance=given) for given in (None, 0.10))
    assert (strict["verdict"], strict["tolerance"]) == ("refuted", 0.0)
    assert (lenient["verdict"], lenient["tolerance"]) == ("supported", 0.10)
    file = write_csv(tmp_path / "curves.csv", lines)
    for tolerance, told in ((None, False), (0.10, True)):
        words = [str(claim_file(tmp_path, tolerance=tolerance)), str(file)]
        shown = " ".join(CliRunner().invoke(command, words, catch_exceptions=False).stdout.split())
        assert ("allowing 10 %" in shown) == told
