"""Logs of other tools: every kind gives the curves that were written, and what is not clear is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from harness.errors import UserError
from reports.audit.audit import audit_claim
from reports.audit.inputs.read import read_logs
from reports.cli.audit import audit as audit_command
from reports.cli.logs import logs as logs_command
from reports.cli.report import report as report_command
from reports.logs.curves import Understood, find_metric
from reports.logs.log_map import LogMap, NamedRun, StepUnit, read_map
from reports.logs.names import split_name
from reports.logs.read import read_logs_of
from tests.reports import logged
from tests.reports.audits import claim, claim_file, rows, write_csv
from tests.reports.logged import BATCH, CURVES, GRID, KINDS, PLAIN

RULES = {"plain": LogMap(line=PLAIN), "EDM2": LogMap(steps=StepUnit(batch_size=BATCH))}


def curves_of(found: Understood, *names: str) -> dict[tuple[str, int], dict[int, float]]:
    return {
        (curve.method, curve.seed): {point.step: point.value for point in curve.points}
        for curve in found.curves
        if curve.metric in names
    }


def needed(kind: str) -> None:
    if kind == "events":
        pytest.importorskip("tensorboard")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_curves_that_were_written(tmp_path: Path, kind: str) -> None:
    needed(kind)
    found = read_logs_of(KINDS[kind](tmp_path), RULES.get(kind))
    got = curves_of(found, "fid", "eval/fid", "eval_fid", "val/fid")
    assert got.keys() == CURVES.keys()
    for run, curve in CURVES.items():
        assert list(got[run]) == list(curve)
        # Event files hold numbers of 32 bits.
        assert np.allclose(
            list(got[run].values()), list(curve.values()), rtol=1e-6 if kind == "events" else 0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_verdict_of_the_tidy_file(tmp_path: Path, kind: str) -> None:
    needed(kind)
    (folder := tmp_path / "logs").mkdir()
    tidy = [
        {"method": m, "seed": s, "step": x, "metric": "fid", "value": v}
        for (m, s), c in CURVES.items()
        for x, v in c.items()
    ]
    sources = [str(file) for file in KINDS[kind](folder)]
    (one, other) = (
        audit_claim(claim(), read_logs(words, claim(), rules=RULES.get(kind)))
        for words in (sources, [str(write_csv(tmp_path / "tidy.csv", tidy))])
    )
    assert one.verdict == other.verdict == "supported"
    assert one.gain.estimate == pytest.approx(other.gain.estimate, rel=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in RULES])
def test_converted_file_has_the_curves_for_pandas(tmp_path: Path, kind: str) -> None:
    needed(kind)
    (folder := tmp_path / "logs").mkdir()
    words = ["convert", *map(str, KINDS[kind](folder)), "-o", str(tmp_path / "curves.csv"), "--json"]
    found = CliRunner().invoke(logs_command, words, catch_exceptions=False)
    table = pd.read_csv(tmp_path / "curves.csv")
    own = table[table.metric.str.contains("fid") & ~table.metric.str.contains("sfid")]
    for (method, seed), curve in CURVES.items():
        run = own[(own.method == method) & (own.seed == seed)]
        assert run.step.tolist() == list(curve)
        assert run.value.to_numpy() == pytest.approx(list(curve.values()), rel=1e-6)
    seen = [row for row in json.loads(found.stdout)["runs"] if row["metric"] in set(own.metric)]
    assert {(row["method"], row["seed"]) for row in seen} == CURVES.keys()
    assert {(row["points"], row["first_step"], row["last_step"]) for row in seen} == {
        (len(GRID), GRID[0], GRID[-1])
    }


def test_table_of_what_was_understood_names_every_run(tmp_path: Path) -> None:
    words = ["convert", *map(str, logged.wide(tmp_path)), "-o", str(tmp_path / "curves.csv")]
    printed = CliRunner().invoke(logs_command, words, catch_exceptions=False).stdout
    for method, seed in CURVES:
        assert f"{method}-seed{seed}" in printed
    assert "counts calls of log" in printed and printed.strip().endswith("curves.csv")


@pytest.mark.parametrize(
    ("name", "method", "seed"),
    [
        ("self_flow-seed0", "self_flow", 0),
        ("repa_s1", "repa", 1),
        ("flow seed=2", "flow", 2),
        ("flow/seed3", "flow", 3),
        ("seed7-repa", "repa", 7),
        ("repa-seed1-b256", "repa-b256", 1),
        ("sit-s2-seed4", "sit-s2", 4),
        ("REPA (Seed: 5)", "REPA (", 5),
        (f"flow_seed{2**64 - 1}", "flow", 2**64 - 1),
        ("flow_seed0_eval", "flow", 0),
    ],
)
def test_grammar_of_names(name: str, method: str, seed: int) -> None:
    found = split_name(name)
    assert found is not None and found[1] == seed and found[0].startswith(method)


@pytest.mark.parametrize("name", ["dandelion-wind-7", "sit-b-2", "flow", "Group: flow", "flow-0"])
def test_name_without_a_seed_is_refused_with_what_was_seen(tmp_path: Path, name: str) -> None:
    logged.write_rows(tmp_path / "e.csv", ["Step", f"{name} - fid"], [[1, 2.0]])
    with pytest.raises(UserError, match=rf"'{name}' does not give its .*seed .*--pattern"):
        read_logs_of([tmp_path / "e.csv"])


def test_log_of_the_working_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged.write_rows(tmp_path / "metrics.csv", ["epoch", "step", "fid"], [[0, 1, 2.0]])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"run '{tmp_path.name}' does not give its method"):
        read_logs_of([Path("metrics.csv")])


def test_seed_of_a_folder_of_samples_is_not_taken_for_that_of_training() -> None:
    with pytest.raises(UserError, match="seed is that of sampling"):
        split_name("SiT-XL-2-0400000-size-256-vae-ema-cfg-1.5-seed-0-sde")
    with pytest.raises(UserError, match="several seeds"):
        split_name("flow-seed0-dataseed1")


def test_pattern_map_and_aliases_name_runs_and_metrics(tmp_path: Path) -> None:
    (export,) = logged.wide(tmp_path, name="exp {0} #{1}")
    (tmp_path / "map.toml").write_text(
        '[methods]\nold = "flow"\n[metrics]\n"eval/fid" = "fid"\n'
        '[runs]\n"exp new #0" = {method = "repa", seed = 9}\n'
    )
    rules = read_map(tmp_path / "map.toml", [r"exp (?P<method>\w+) #(?P<seed>\d+)"])
    found = sorted((c.method, c.seed) for c in read_logs_of([export], rules).curves if c.metric == "fid")
    assert found == [("flow", 0), ("flow", 1), ("flow", 2), ("new", 1), ("new", 2), ("repa", 9)]
    assert rules.runs == {"exp new #0": NamedRun(method="repa", seed=9)}


@pytest.mark.parametrize(
    ("table", "patterns", "message"),
    [
        ("", ["(?P<method>.+)"], "needs the groups method and seed"),
        ("", ["(?P<method>.+"], "not a regular expression"),
        ("line = 'fid (?P<fid>.)'", [], "needs a group step, epoch, kimg or images"),
        ("patern = 'x'", [], "patern: extra inputs.*known: pattern"),
        ("[steps]\nunit = 'hours'", [], "steps.unit"),
    ],
)
def test_invalid_map_or_pattern_is_refused(
    tmp_path: Path, table: str, patterns: list[str], message: str
) -> None:
    (tmp_path / "map.toml").write_text(table)
    with pytest.raises(UserError, match=message):
        read_map(tmp_path / "map.toml", patterns)


WIDE: dict[str, tuple[list[str], list[list[object]], str]] = {
    "averaged": (
        ["Step", *(f"a-seed0 - fid{end}" for end in ("", "__MIN", "__MAX"))],
        [[1, 3, 2, 4]],
        "averages values from 2 to 4",
    ),
    "smoothed": (["Step", "a-seed0 - fid (smoothed)"], [[1, 3]], "is smoothed"),
    "epochs": (["epoch", "a-seed0 - fid"], [[1, 3]], "counts epochs; give the steps of an epoch"),
    "kimg": (["kimg", "a-seed0 - fid"], [[1, 3]], "counts kimg; give the images of a step"),
    "wall time": (["Relative Time (Wall)", "a-seed0 - fid"], [[1, 3]], "no column counts steps"),
    "unit": (["Step", "a-seed0 - fid"], [[1, "3 %"]], "line 2, column 'a-seed0 - fid': value = '3 %'"),
    "same run": (
        ["Step", "a-seed0 - fid", "a_seed0 - fid"],
        [[1, 3, 4], [2, 3, 4]],
        "two runs of a with seed 0",
    ),
}


@pytest.mark.parametrize("what", WIDE)
def test_export_that_is_not_clear_is_refused(tmp_path: Path, what: str) -> None:
    header, lines, message = WIDE[what]
    with pytest.raises(UserError, match=message):
        read_logs_of([logged.write_rows(tmp_path / "e.csv", header, lines)])


def test_smoothed_column_beside_a_raw_one_is_left_out_with_a_note(tmp_path: Path) -> None:
    header = ["Step", "a-seed0 - fid", "a-seed0 - fid (smoothed)"]
    found = read_logs_of([logged.write_rows(tmp_path / "e.csv", header, [[1, 3, 9]])])
    assert curves_of(found, "fid") == {("a", 0): {1: 3.0}} and len(found.curves) == 1
    assert any("smoothed columns are left out" in note for note in found.notes)


@pytest.mark.parametrize(
    ("counter", "steps", "factor"),
    [
        ("kimg", StepUnit(batch_size=500), 1 / 0.5),
        ("images", StepUnit(batch_size=500), 1 / 500),
        ("epoch", StepUnit(per_epoch=5004), 5004),
        ("Step", StepUnit(unit="images", batch_size=250), 1 / 250),
    ],
)
def test_units_of_steps_are_converted_as_asked(
    tmp_path: Path, counter: str, steps: StepUnit, factor: float
) -> None:
    header, lines = [counter, "a-seed0 - fid"], [[5000, 3], [10_000, 2]]
    found = read_logs_of([logged.write_rows(tmp_path / "e.csv", header, lines)], LogMap(steps=steps))
    assert list(curves_of(found, "fid")["a", 0]) == [round(5000 * factor), round(10_000 * factor)]


@pytest.mark.parametrize("bad", ["Infinity", "NaN", "inf", "nan", "0", "-1"])
def test_value_without_a_logarithm_is_refused_with_run_and_step(tmp_path: Path, bad: str) -> None:
    header = ["Step", "old-seed0 - fid", "new-seed0 - fid"]
    file = logged.write_rows(tmp_path / "e.csv", header, [[10, 9, 8], [20, 5, bad]])
    with pytest.raises(UserError, match="line 3, column 'new-seed0 - fid': value = "):
        read_logs([str(file)], claim())
    with pytest.raises(UserError, match="line 3, column 'new-seed0 - fid': value = "):
        CliRunner().invoke(
            report_command, [str(file), "-o", str(tmp_path / "r.html")], catch_exceptions=False
        )
    assert not (tmp_path / "r.html").exists()


def test_last_value_of_a_repeated_step_counts_in_json(tmp_path: Path) -> None:
    history = [
        {"step": s, "eval_fid": v}
        for s, v in [(10, 9.0), (20, 8.0), (30, 7.0), (20, 6.5), (30, 6.0), (40, 5.0)]
    ]
    (tmp_path / "repa-s0").mkdir()
    (tmp_path / "repa-s0" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    found = read_logs_of([tmp_path])
    assert curves_of(found, "eval_fid") == {("repa", 0): {10: 9.0, 20: 6.5, 30: 6.0, 40: 5.0}}
    assert found.notes == (
        "repa seed 0 was resumed: 2 values of eval_fid were logged again, and the last ones count.",
    )


def test_resumed_event_files_keep_the_last_values(tmp_path: Path) -> None:
    """TensorBoard itself would drop these values without a word."""
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for number, values in enumerate([{10: 9.0, 20: 8.0, 30: 7.0}, {20: 6.5, 30: 6.0}]):
        writer = EventFileWriter(str(tmp_path / "repa_seed1"), filename_suffix=f".{number}")
        for step, value in values.items():
            scalar = Summary(value=[Summary.Value(tag="fid", simple_value=value)])
            writer.add_event(Event(step=step, summary=scalar))
        writer.close()
    found = read_logs_of([tmp_path])
    assert curves_of(found, "fid") == {("repa", 1): {10: 9.0, 20: 6.5, 30: 6.0}}
    assert any("was resumed" in note for note in found.notes)


def test_offline_folder_of_wandb_is_named_by_its_settings(tmp_path: Path) -> None:
    for seed in (0, 1):
        (files := tmp_path / f"offline-run-20240101_00000{seed}-ab{seed}" / "files").mkdir(parents=True)
        (files / "wandb-summary.json").write_text(
            json.dumps({"_step": 400_000, "eval/fid": 5.9, "_runtime": 9})
        )
        (files / "config.yaml").write_text(
            f"wandb_version: 1\nmethod:\n  value: repa\nseed:\n  value: {seed}\n"
        )
    found = read_logs_of([tmp_path])
    assert curves_of(found, "eval/fid") == {("repa", seed): {400_000: 5.9} for seed in (0, 1)}
    assert any("holds the last values only" in note for note in found.notes)


def test_settings_that_contradict_a_name_are_refused(tmp_path: Path) -> None:
    (folder := tmp_path / "repa-seed1").mkdir()
    (folder / "hparams.yaml").write_text("seed: 2\n")
    logged.write_rows(folder / "metrics.csv", ["epoch", "step", "fid"], [[0, 1, 3.0]])
    with pytest.raises(UserError, match="its name has seed 1, its settings have seed 2"):
        read_logs_of([folder])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a-seed0.json", b"{", "is not JSON"),
        ("a-seed0.json", b"[1]", "no log of a known kind"),
        ("a-seed0.json", b'{"log_history": [1]}', "entry 1: expected an object"),
        ("a-seed0.jsonl", b'{"fid": 3}\n', "nothing counts steps"),
        ("a-seed0.jsonl", b'{"step": 1, "fid": 3}\n{\n{"step": 2, "fid": 2}\n', "line 2 is not JSON"),
        (
            "a-seed0.jsonl",
            b'{"step": -1, "fid": 3}\n',
            "line 1: -1 steps: expected a finite number, 0 or more",
        ),
        ("a-seed0.jsonl", b'{"step": Infinity, "fid": 3}\n', "inf steps: expected a finite number"),
        (
            "a-seed0.jsonl",
            b'{"step": ' + b"9" * 400 + b', "fid": 3}\n',
            "step = '9999.*expected a plain number",
        ),
        ("a.csv", b"Step,a-seed0 - fid\n1e999,2\n", "Step = 1e999: expected a finite number"),
        ("a.csv", b"Step,a-seed0 - fid\n" + b"9" * 5000 + b",2\n", "Step = 9+: expected a finite number"),
        ("a-seed0.log", b"hello\n", "a log of no known kind; describe its lines"),
        ("b-seed0.txt", b"FID: 3\nsFID: 4\n", "its name does not give the step"),
        ("a-seed0.csv", "Step,a-seed0 - fid\n1,2\n".encode("utf-16"), "text in UTF-16"),
        ("fid.csv", b"Wall time,Step,Value\n1,2,3\n", "does not give the metric"),
        (
            "events.out.tfevents.1",
            b"\x00\x01not an event file",
            "hold no scalars|cannot read|tensorboard|its method",
        ),
    ],
)
def test_broken_log_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (folder := tmp_path / "a-seed0").mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_logs_of([folder / name])


def test_torn_last_line_of_a_running_log_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a-seed0.jsonl").write_text('{"step": 1, "fid": 3}\n{"step": 2, "fi')
    found = read_logs_of([tmp_path / "a-seed0.jsonl"])
    assert curves_of(found, "fid") == {("a", 0): {1: 3.0}} and "torn" in found.notes[0]


def test_metric_is_found_without_its_prefix_unless_it_may_be_two() -> None:
    assert find_metric("fid", ["train/loss", "eval/FID"], "x") == "eval/FID"
    with pytest.raises(UserError, match="may be any of: eval/fid, val/fid"):
        find_metric("fid", ["eval/fid", "val/fid"], "x")
    with pytest.raises(UserError, match="unknown metric in x: 'fdd'"):
        find_metric("fdd", ["eval/fid"], "x")


def test_seeds_of_64_bits_are_kept_in_a_csv(tmp_path: Path) -> None:
    seeds = [2**63 - 1, 2**63, 2**64 - 1]
    lines = rows({"old": 1.0, "new": 2.2}, seeds=seeds)
    assert list(read_logs([str(write_csv(tmp_path / "c.csv", lines))], claim()).candidate) == seeds


def test_name_in_another_unicode_form_is_the_same_name(tmp_path: Path) -> None:
    lines = rows({"old": 1.0, "re\u0301pa": 2.2}, seeds=range(3))
    asked = claim(candidate="r\u00e9pa")
    assert list(read_logs([str(write_csv(tmp_path / "c.csv", lines))], asked).candidate) == [0, 1, 2]


def test_audit_power_needs_no_metric_of_a_log_with_one(tmp_path: Path) -> None:
    words = ["power", *map(str, logged.wide(tmp_path)), "--method", "old", "--candidate", "new", "--json"]
    found = json.loads(CliRunner().invoke(audit_command, words, catch_exceptions=False).stdout)
    assert found["arms"] == ["old", "new"] and found["spread"]["n"] == 3


@pytest.mark.parametrize("kind", ["W&B", "data frame", "Lightning"])
def test_report_of_logs_has_the_speed_up_of_the_audit(tmp_path: Path, kind: str) -> None:
    (folder := tmp_path / "logs").mkdir()
    sources = [str(file) for file in KINDS[kind](folder)]
    options = ["--metric", "fid", "--baseline", "old", "--target", "12", "--claim", str(claim_file(tmp_path))]
    words = [*sources, "-o", str(tmp_path / "r.html"), *options, "--json"]
    found = json.loads(CliRunner().invoke(report_command, words, catch_exceptions=False).stdout)
    audited = audit_claim(claim(), read_logs(sources, claim()))
    (row,) = [row for row in found["cells"] if row["axis"] == "steps"] or found["rows"][1:]
    assert found["claims"][0]["verdict"] == "supported"
    assert row.get("speedup") == pytest.approx(audited.gain.estimate, rel=1e-9)
    assert any("Cost per step" in caveat for caveat in found["caveats"])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "old-seed0" in page and "<svg" in page


@pytest.mark.usefixtures("undrawn")
def test_report_of_a_csv_compares_on_the_costs_that_it_has(tmp_path: Path) -> None:
    costs = {"flops": {"old": 1e9, "new": 2e9}, "gpu_seconds": {"old": 1.0, "new": 1.0}}
    file = write_csv(tmp_path / "c.csv", rows({"old": 1.0, "new": 2.2}, costs=costs))
    words = [str(file), "-o", str(tmp_path / "r.html"), "--baseline", "old", "--target", "12", "--json"]
    found = json.loads(CliRunner().invoke(report_command, words, catch_exceptions=False).stdout)
    assert set(found["verdict"]) == {"steps", "flops", "gpu_seconds"}


def test_report_of_several_metrics_asks_which(tmp_path: Path) -> None:
    lines = rows({"old": 1.0, "new": 2.2}) + [
        row | {"metric": "kid"} for row in rows({"old": 1.0, "new": 2.2})
    ]
    with pytest.raises(UserError, match=r"several metrics \(fid, kid\); give one"):
        words = [
            str(write_csv(tmp_path / "c.csv", lines)),
            "-o",
            str(tmp_path / "r.html"),
            "--baseline",
            "old",
        ]
        CliRunner().invoke(report_command, words, catch_exceptions=False)
