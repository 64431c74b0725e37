"""Audits of claims that are judged before all their runs are done."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy import stats

from harness.errors import UserError
from reports.audit.audit import Audit
from reports.audit.inputs.claim import claim_hash, read_claims
from reports.audit.judge_files import judge_claims
from reports.cli.audit import audit as command
from reports.stats.sequential import boundaries
from tests.reports.audits import claim, claim_file, rows, write_csv

TEN = {"max_pairs": 10}


def judged(folder: Path, lines: list[dict[str, Any]], rule: Mapping[str, Any] = TEN, **changes: Any) -> Audit:
    file = claim_file(folder, sequential=dict(rule), **changes)
    return judge_claims([file], [str(write_csv(folder / "curves.csv", lines))])[0]


def test_claim_without_looks_keeps_its_hash() -> None:
    """The hash of a claim as version 0.2 registered it."""
    assert claim_hash(claim()) == claim_hash(claim(sequential=None))
    assert claim_hash(claim(sequential=TEN)) != claim_hash(claim(sequential={"max_pairs": 9}))


def test_interval_is_that_of_the_look(tmp_path: Path) -> None:
    lines = rows({"old": 1, "new": 2.0}, seeds=range(4), noise=0.05)
    found = judged(tmp_path, lines)
    once = judge_claims([claim_file(tmp_path, "once.toml")], [str(tmp_path / "curves.csv")])[0]
    assert found.gain is not None and once.gain is not None and found.gain.high is not None
    assert found.gain.estimate == once.gain.estimate
    wide = found.gain.high / found.gain.factor
    narrow = (once.gain.high or 0) / once.gain.factor
    ratio = boundaries(tuple(range(3, 11)))[4] / stats.t.ppf(0.975, 3)
    assert math.log(wide) / math.log(narrow) == pytest.approx(ratio, rel=1e-3)
    assert [look.n for look in found.looks] == [3, 4]


def test_first_deciding_look_ends_the_claim(tmp_path: Path) -> None:
    lines = rows({"old": 1, "new": 3.0}, seeds=range(10), noise=0.01)
    found = judged(tmp_path, lines)
    assert found.gain is not None and found.looks[-1].n == found.gain.n < 10
    assert found.verdict == "supported"
    assert any("later ones do not count" in note for note in found.notes)


def test_false_claim_is_refuted_early(tmp_path: Path) -> None:
    found = judged(tmp_path, rows({"old": 1, "new": 1.2}, seeds=range(10), noise=0.01))
    assert found.verdict == "refuted" and len(found.looks) < 8


def test_undecided_claim_names_its_prospects(tmp_path: Path) -> None:
    found = judged(tmp_path, rows({"old": 1, "new": 1.95}, seeds=range(5), noise=0.08))
    assert found.verdict == "inconclusive"
    assert list(found.prospects) == [6, 7, 8, 9, 10]
    chances = list(found.prospects.values())
    assert chances == sorted(chances) and chances[0] >= 0 and chances[-1] <= 1


def test_no_interval_is_shown_before_the_first_look(tmp_path: Path) -> None:
    found = judged(tmp_path, rows({"old": 1, "new": 3}, seeds=range(2), noise=0.01))
    assert found.verdict == "inconclusive" and found.looks == ()
    assert found.gain is not None and found.gain.low is None
    assert "the first look is at 3" in str(found.reasons[-1])


def test_left_out_seed_stops_the_count(tmp_path: Path) -> None:
    """A pair that is dropped cannot be replaced by a later one."""
    lines = [row for row in rows({"old": 1, "new": 1.9}, seeds=range(6)) if row["seed"] != 3]
    found = judged(tmp_path, lines)
    assert found.verdict == "inconclusive" and found.looks[-1].n == 3
    assert found.reasons[0].name == "order" and "seed 3" in found.reasons[0].text


def test_pairs_beyond_the_registered_ones_do_not_count(tmp_path: Path) -> None:
    found = judged(tmp_path, rows({"old": 1, "new": 1.95}, seeds=range(8), noise=0.08), {"max_pairs": 5})
    assert found.looks[-1].n == 5
    assert any("5, 6, 7" in note and "does not register" in note for note in found.notes)


def test_seeds_count_in_their_registered_order(tmp_path: Path) -> None:
    lines = rows({"old": 1, "new": 1.95}, seeds=range(5), noise=0.08)
    rule = {"max_pairs": 5, "seeds": [4, 2, 0, 1, 3]}
    found = judged(tmp_path, lines, rule)
    first = found.looks[0].gain
    alone = [row for row in lines if row["seed"] in (4, 2, 0)]
    once = judge_claims([claim_file(tmp_path, "once.toml")], [str(write_csv(tmp_path / "three.csv", alone))])[
        0
    ]
    assert first is not None and once.gain is not None
    assert first.estimate == pytest.approx(once.gain.estimate)


def test_equal_pairs_need_a_registered_floor(tmp_path: Path) -> None:
    lines = rows({"old": 1, "new": 2.5}, seeds=range(3), noise=0.0)
    assert "sequential.floor" in str(judged(tmp_path, lines).reasons[0])
    floored = judged(tmp_path, lines, TEN | {"floor": 0.02})
    assert floored.gain is not None and floored.gain.error == pytest.approx(0.02 / 3**0.5)
    assert floored.verdict == "supported"


def test_target_that_moves_from_look_to_look_is_rejected(tmp_path: Path) -> None:
    lines = rows({"old": 1, "new": 2}, seeds=range(4))
    with pytest.raises(UserError, match="would move from look to look"):
        judged(tmp_path, lines, target="baseline@100000")
    tuned = {"tuning": {"old": {"seeds": [3]}, "new": {}}}
    file = claim_file(tmp_path, extra=tuned, target="baseline@100000", sequential={"max_pairs": 3})
    assert judge_claims([file], [str(tmp_path / "curves.csv")])[0].looks[-1].n == 3


def test_family_shares_the_error_over_its_claims(tmp_path: Path) -> None:
    """Holm: a claim that holds at alpha / 2 leaves the other one alpha."""
    lines = rows({"old": 1, "new": 2.6, "other": 2.35}, seeds=range(5), noise=0.03)
    table = write_csv(tmp_path / "curves.csv", lines)
    one = claim_file(tmp_path, "one.toml", sequential=TEN)
    two = claim_file(tmp_path, "two.toml", sequential=TEN, name="second", candidate="other")
    found = judge_claims([one, two], [str(table)])
    assert [audit.verdict for audit in found] == [audit.adjusted for audit in found] == ["supported"] * 2
    alone = claim_file(tmp_path, "alone.toml", name="third")
    with pytest.raises(UserError, match=r"has no \[claim\.sequential\]"):
        judge_claims([one, alone], [str(table)])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"max_pairs": 2}, "greater than or equal to 3"),
        ({"max_pairs": 5, "looks": [3, 4]}, "the last of looks must be max_pairs = 5"),
        ({"max_pairs": 5, "looks": [5, 3]}, "looks must ascend"),
        ({"max_pairs": 5, "g": 4.0}, "g has no effect"),
        ({"max_pairs": 5, "kind": "anytime", "spending": "pocock"}, "spending has no effect"),
        ({"max_pairs": 4, "seeds": [0, 1, 1, 2]}, "4 different seeds"),
    ],
)
def test_invalid_rules_are_rejected(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_claims(claim_file(tmp_path, sequential=rule))


def test_card_and_json_name_the_look(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "curves.csv", rows({"old": 1, "new": 1.95}, seeds=range(4), noise=0.08))
    file = claim_file(tmp_path, sequential=TEN)
    shown = CliRunner().invoke(command, [str(file), str(table)])
    assert shown.exit_code == 0 and "look 2 of 8, at 4 of 10 pairs" in shown.output
    row = json.loads(CliRunner().invoke(command, [str(file), str(table), "--json"]).output)
    assert [look["n"] for look in row["looks"]] == [3, 4] and row["p"] is None
