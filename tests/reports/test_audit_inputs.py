"""Malformed claims and CSVs: one clear sentence and exit code 2, or an inconclusive audit that names why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.errors import UserError
from reports.audit.inputs.claim import Claim, Tuning, claim_hash, read_claims, read_tuning
from reports.audit.inputs.csv_curves import read_tidy
from reports.cli.audit import audit as command
from tests.reports.audits import CLAIM, claim, claim_file, reason_names, rows, run_audit, write_csv

GOOD = rows({"old": 1.0, "new": 2.2}, seeds=range(3), costs={"seconds": {"old": 0.1, "new": 0.2}})


def changed(**columns: Any) -> list[dict]:
    """The good lines, with the third one changed; line 4 of the file."""
    return [row | (columns if i == 2 else {}) for i, row in enumerate(GOOD)]


BAD_LINES: dict[str, tuple[list[dict], str]] = {
    "no value": ([{k: v for k, v in row.items() if k != "value"} for row in GOOD], "no column 'value'"),
    "misspelt column": (
        [{k.replace("metric", "metrics"): v for k, v in row.items()} for row in GOOD],
        "no column 'metric'.*Is it 'metrics'",
    ),
    "two runs of one name": (
        [row for row in GOOD for _ in range(2)],
        r"line 3: old seed 0 has two values of fid at step 25000 \(the other is in .* line 2\), and at "
        r".*several runs",
    ),
    "backwards": (
        [GOOD[1], GOOD[0], *GOOD[2:]],
        "line 3: the steps of old seed 0 go backwards, from 50000 to 25000",
    ),
    "negative value": (changed(value=-4.0), "line 4: value = -4: .*logarithm"),
    "zero": (changed(value=0), "line 4: value = 0"),
    "infinite": (changed(value="inf"), "line 4: value = inf: expected a finite number"),
    "not a number": (changed(value="nan"), "line 4: value = nan: expected a finite number"),
    "missing value": (changed(value=""), "line 4: value = '': expected a plain number"),
    "unit in a step": (changed(step="75k"), "line 4: step = '75k': expected a plain number, without a unit"),
    "percentage": (changed(value="3 %"), "line 4: value = '3 %': expected a plain number, without a unit"),
    "half a step": (changed(step=75000.5), "line 4: step = 75000.5: expected a whole number"),
    "negative step": (changed(step=-75000), "line 4: step = -75000: expected 0 or more"),
    "seed of words": (changed(seed="first"), "line 4: seed = 'first'"),
    "negative seconds": (changed(seconds=-1), "line 4: seconds = -1: expected the total since step 0"),
    "seconds backwards": (changed(seconds=1), "line 4: seconds of old seed 0 goes backwards"),
    "infinite seconds": (changed(seconds="inf"), "line 4: seconds = inf"),
    "no candidate": (
        [row for row in GOOD if row["method"] == "old"],
        r"unknown method in .*: 'new' \(known: old\)",
    ),
    "another metric": (
        [row | {"metric": "fdd"} for row in GOOD],
        "unknown metric in .*: 'fid'.*Did you mean 'fdd'",
    ),
}


@pytest.mark.parametrize("what", BAD_LINES)
def test_malformed_line_is_named(tmp_path: Path, what: str) -> None:
    lines, message = BAD_LINES[what]
    with pytest.raises(UserError, match=message):
        read_tidy(write_csv(tmp_path / "curves.csv", lines), ("old", "new"), "fid")


def test_last_value_of_a_repeated_step_counts_with_a_note(tmp_path: Path) -> None:
    """The run was resumed after 50000 steps, and the lines of its first attempt are still in the file."""
    repeated = [*GOOD[:4], *(row | {"value": 2 * row["value"]} for row in GOOD[2:4]), *GOOD[4:]]
    found = read_tidy(write_csv(tmp_path / "curves.csv", repeated), ("old", "new"), "fid")
    once = read_tidy(write_csv(tmp_path / "once.csv", GOOD), ("old", "new"), "fid")
    ratio = found.runs["old"][0].curve.measured / once.runs["old"][0].curve.measured
    assert ratio[:5].tolist() == [1, 1, 2, 2, 1]
    assert found.notes == (
        "old seed 0 was resumed: 2 values of fid were logged again, and the last ones count.",
    )


BAD_TEXTS = {
    "empty": (b"", "is empty"),
    "header alone": (b"method,seed,step,metric,value\n", "has a header and no lines"),
    "semicolons": (b"method;seed;step;metric;value\nold;0;1;fid;3\n", "separated by commas"),
    "ragged": (b"method,seed,step,metric,value\nold,0,1,fid\n", "line 2: 4 cells, but the header names 5"),
    "two columns of one name": (b"method,seed,step,metric,value,value\n", "two columns are named 'value'"),
    "not text": (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "is not text in UTF-8"),
    "torn quote": (
        b'method,seed,step,metric,value\n"old,0,1,fid,3\n',
        "cannot read .*unexpected end of data",
    ),
}


@pytest.mark.parametrize("what", BAD_TEXTS)
def test_file_that_is_not_a_csv_is_rejected(tmp_path: Path, what: str) -> None:
    content, message = BAD_TEXTS[what]
    (tmp_path / "curves.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_tidy(tmp_path / "curves.csv", ("old", "new"), "fid")


def test_csv_may_have_blanks_step_0_and_other_columns(tmp_path: Path) -> None:
    """A byte order mark, blanks around cells, empty lines, step 0, other columns and other methods."""
    text = (
        "\ufeffmethod, seed,step,metric,value,note\nold,0,0,fid,99,x\n\nold, 0, 10 ,fid, 5 ,\n"
        "new,0,10,fid,4,\nhalf,q,1,fid,-1,\n"
    )
    (tmp_path / "curves.csv").write_text(text, encoding="utf-8")
    found = read_tidy(tmp_path / "curves.csv", ("old", "new"), "fid")
    assert found.runs["old"][0].curve.steps.tolist() == [10] and found.runs["new"][
        0
    ].curve.measured.tolist() == [4]
    assert found.notes == ("Columns not used: note (known: images, flops, seconds, gpu_seconds, protocol).",)


BAD_CLAIMS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"candidat": "new"}, r"unknown key 'candidat' \(known: axis, .*Did you mean 'candidate'"),
    "missing": ({"factor": None}, "claim: factor is missing"),
    "factor of 0": ({"factor": 0.0}, "factor = 0.0: .*greater than 0"),
    "factor as text": ({"factor": "2.8x"}, 'factor = "2.8x"'),
    "unknown axis": ({"axis": "hours"}, 'axis = "hours": .*steps.*gpu_seconds'),
    "unknown kind": ({"kind": "at_most"}, 'kind = "at_most"'),
    "target of another step": (
        {"target": "candidate@400"},
        'target = "candidate@400": expected a number above 0 or',
    ),
    "negative target": ({"target": -3.0}, "target = -3.0: expected a number above 0"),
    "infinite target": ({"target": float("inf")}, "target"),
    "confidence in percent": ({"confidence": 95.0}, "confidence = 95.0: .*less than or equal to 0.99"),
    "one pair": ({"min_pairs": 1}, "min_pairs = 1: .*greater than or equal to 2"),
    "half a pair": ({"min_pairs": 2.5}, "min_pairs = 2.5"),
    "itself": ({"candidate": "old"}, "candidate and baseline are both 'old'.*selftest"),
    "no name": ({"name": ""}, 'name = ""'),
    "tolerance in percent": ({"tolerance": 10}, "tolerance = 10"),
}


@pytest.mark.parametrize("what", BAD_CLAIMS)
def test_malformed_claim_is_named(tmp_path: Path, what: str) -> None:
    changes, message = BAD_CLAIMS[what]
    with pytest.raises(UserError, match=message):
        read_claims(claim_file(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[claim", "is not TOML"),
        ("", "contains no claim"),
        ("claim = 3", "contains no claim"),
        ("[claims]\nname = 'x'", "unknown table 'claims'.*Did you mean 'claim'"),
        ("[claim]\n[tuning]\nrepa = 3", "tuning must be given by method"),
        ("[tuning.repa]\ntrails = 3", "unknown key 'trails'.*Did you mean 'trials'"),
        ("[tuning.repa]\ntrials = -3", "tuning.repa: trials = -3"),
    ],
)
def test_file_without_a_claim_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    import tomllib

    (tmp_path / "claim.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_tuning([(tmp_path / "claim.toml", tomllib.loads(text))] if "tuning" in text else [])
        read_claims(tmp_path / "claim.toml")


def test_two_claims_with_one_name_are_rejected(tmp_path: Path) -> None:
    import tomli_w

    (tmp_path / "claim.toml").write_text(tomli_w.dumps({"claim": [CLAIM, CLAIM]}))
    with pytest.raises(UserError, match="two claims have the same name"):
        read_claims(tmp_path / "claim.toml")
    (tmp_path / "claim.toml").write_text(tomli_w.dumps({"claim": [CLAIM, CLAIM | {"name": "b"}]}))
    assert [one.name for one in read_claims(tmp_path / "claim.toml")] == ["faster", "b"]


def test_tuning_may_be_recorded_in_a_claim_file(tmp_path: Path) -> None:
    file = claim_file(tmp_path, extra={"tuning": {"new": {"trials": 5, "seeds": [7]}}})
    import tomllib

    assert read_tuning([(file, tomllib.loads(file.read_text()))]) == {"new": Tuning(trials=5, seeds=(7,))}
    assert read_claims(file) == [claim()]


def test_hash_depends_on_every_key_and_not_on_the_layout() -> None:
    """Integers equal floats, stated defaults equal omitted ones, and every key changes the hash."""
    same = [claim(), claim(target=12), claim(factor=2), claim(tolerance=0.1), claim(min_pairs=3)]
    assert len({claim_hash(one) for one in same}) == 1
    other = {
        "name": "x",
        "candidate": "x",
        "baseline": "x",
        "metric": "x",
        "target": 1.0,
        "axis": "flops",
        "factor": 3.0,
    }
    other |= {"kind": "equal", "tolerance": 0.2, "confidence": 0.9, "min_pairs": 4}
    other |= {"sequential": {"max_pairs": 5}}
    assert other.keys() == Claim.model_fields.keys()
    assert (
        len({claim_hash(claim(**{key: value})) for key, value in other.items()} | {claim_hash(claim())}) == 13
    )


def run(*words: str) -> Any:
    return CliRunner().invoke(command, list(words))


def broken_words(folder: Path) -> dict[str, tuple[list[str], str]]:
    one, curves = str(claim_file(folder)), str(write_csv(folder / "curves.csv", GOOD))
    return {
        "no claim": ([curves], "no claim among"),
        "no runs": ([one], "no runs to judge"),
        "no such folder": ([one, str(folder / "nowhere")], "no such file or folder"),
        "empty folder": ([one, str(folder)], "no runs in"),
        "no such claim": ([str(folder / "none.toml"), curves], "cannot read"),
        "axis that is not recorded": (
            [str(claim_file(folder, "f.toml", axis="flops")), curves],
            "the claim is on flops",
        ),
        "seed in two files": (
            [one, curves, str(write_csv(folder / "again.csv", GOOD))],
            "two runs of old with seed 0",
        ),
        "no store": ([one, f"sqlite:///{folder}/none.db"], "no such store"),
        "store elsewhere": ([one, "http://tracking.example.org:5000"], "only a server on this machine"),
    }


@pytest.mark.parametrize(
    "what",
    [
        "no claim",
        "no runs",
        "no such folder",
        "empty folder",
        "no such claim",
        "axis that is not recorded",
        "seed in two files",
        "no store",
        "store elsewhere",
    ],
)
def test_invalid_command_line_is_rejected(tmp_path: Path, what: str) -> None:
    words, message = broken_words(tmp_path)[what]
    found = run(*words)
    assert isinstance(found.exception, UserError) and message in str(found.exception)
    assert not (tmp_path / "none.db").exists()


INCONCLUSIVE: dict[str, tuple[Callable[[], list[dict]], str]] = {
    "one seed": (lambda: rows({"old": 1.0, "new": 2.2}, seeds=[0]), "pairs"),
    "one evaluation": (lambda: rows({"old": 1.0, "new": 2.2}, grid=[400_000]), "target"),
    "no overlap of values": (lambda: rows({"old": 1e-4, "new": 1e-3}), "target"),
    "mixed protocols in one run": (
        lambda: [row | {"protocol": "10k" if row["step"] < 200_000 else "50k"} for row in GOOD],
        "protocol",
    ),
}


@pytest.mark.parametrize("what", INCONCLUSIVE)
def test_insufficient_data_are_inconclusive(tmp_path: Path, what: str) -> None:
    lines, name = INCONCLUSIVE[what]
    found = run(str(claim_file(tmp_path)), str(write_csv(tmp_path / "curves.csv", lines())), "--json")
    assert found.exit_code == 0
    printed = json.loads(found.stdout)
    assert printed["verdict"] == "inconclusive" and name in [
        reason.partition(":")[0] for reason in printed["reasons"]
    ]


def test_runs_that_set_the_target_need_the_same_protocol(tmp_path: Path) -> None:
    """Seeds 100 to 102 only set the target; under another protocol their values are no target."""
    lines = rows({"old": 1.0, "new": 2.2}, seeds=range(3), protocol="N=50k")
    lines += rows({"old": 1.0}, seeds=range(100, 103), protocol="N=10k")
    extra = {"tuning": {name: {"seeds": [100, 101, 102]} for name in ("old", "new")}}
    csv = str(write_csv(tmp_path / "c.csv", lines))
    found = run_audit(str(claim_file(tmp_path, extra=extra, target="baseline@200000")), csv)
    assert found["verdict"] == "inconclusive" and reason_names(found)[0] == "protocol"
    assert run_audit(str(claim_file(tmp_path, extra=extra, target=12.0)), csv)["verdict"] == "supported"


@pytest.mark.parametrize("kind", ["selftest", "power"])
@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (rows({"old": 1.0}, seeds=range(4)), ["--axis", "flops"], "does not record flops"),
        (
            rows({"old": 1.0}, seeds=range(2), protocol="a")
            + rows({"old": 1.0}, seeds=range(2, 4), protocol="b"),
            [],
            "values of these runs cannot be compared: evaluations differ in protocol",
        ),
        (
            rows({"new": 1.0}, seeds=range(4))
            + [r | {"metric": "kid"} for r in rows({"old": 1.0}, seeds=[0])],
            [],
            "no finished run of old was evaluated by 'fid'",
        ),
    ],
)
def test_pilot_rejects_runs_that_it_cannot_compare(
    tmp_path: Path, kind: str, lines: list[dict], options: list[str], message: str
) -> None:
    csv = write_csv(tmp_path / "c.csv", lines)
    words = [kind, str(csv), "--method", "old", "--metric", "fid", *options]
    found = CliRunner().invoke(command, words)
    assert isinstance(found.exception, UserError) and message in str(found.exception)


def test_selftest_reports_a_missing_interval(tmp_path: Path) -> None:
    csv = write_csv(tmp_path / "c.csv", rows({"old": 1.0}, seeds=range(4)))
    words = ["selftest", str(csv), "--method", "old", "--metric", "fid", "--target", "0.001"]
    found = CliRunner().invoke(command, words, catch_exceptions=False)
    assert "no interval" in found.stdout and "contains" not in found.stdout
    assert json.loads(CliRunner().invoke(command, [*words, "--json"]).stdout)["holds"] is None


def test_run_with_step_0_only_is_excluded(tmp_path: Path) -> None:
    lines = rows({"old": 1.0, "new": 2.2}, seeds=range(4))
    lines += [lines[0] | {"method": "new", "seed": 9, "step": 0}]
    found = run_audit(str(claim_file(tmp_path)), str(write_csv(tmp_path / "c.csv", lines)))
    assert found["verdict"] == "supported"
    assert any("new seed 9 has fid at step 0 only" in note for note in found["notes"])


def test_very_flat_curves_have_no_dual_check(tmp_path: Path) -> None:
    """The arms differ by twelve decades and are nearly flat, so that extrapolated times would overflow."""
    lines = rows({"old": 1.0, "new": 2.2}, seeds=range(3))
    for row in lines:
        row["value"] = (1e12 if row["method"] == "old" else 1.0) * row["step"] ** -0.02
    found = run_audit(str(claim_file(tmp_path)), str(write_csv(tmp_path / "c.csv", lines)))
    assert found["verdict"] == "supported" and found["dual"] is None


@pytest.mark.parametrize("target", ["baseline@100000_", "baseline@_1", "baseline@0", "baseline@1__0"])
def test_target_step_must_be_a_positive_integer(tmp_path: Path, target: str) -> None:
    with pytest.raises(UserError, match="baseline@STEP"):
        read_claims(claim_file(tmp_path, target=target))
