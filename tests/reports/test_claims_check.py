"""Each rule on made-up data, with and without a finding, and its findings in the shipped numbers."""

from __future__ import annotations

from typing import Any

import pytest

from reports.literature.check import RULES, Finding, check_literature
from reports.literature.compare import count, differ, guided, mismatch, relative
from reports.literature.database import load_literature
from reports.literature.entries import Comparison, KnownSpread, Literature, PublishedNumber, Ratio


def number(id: str, value: float | str = 10.0, **fields: Any) -> PublishedNumber:
    """Return a number of a paper that compares `ours` with `base`."""
    given = {
        "id": id,
        "value": value,
        "paper": "p",
        "title": "P",
        "source": "P Table 1",
        "status": "table",
        "method": fields.get("arm", "base"),
        "arm": "base",
        "model": "M",
        "network": "M",
        "dataset": "D",
        "metric": fields.get("measure", "FID"),
        "measure": "FID",
        "steps": 100_000,
        "places": 1,
        "sampler": "SDE250",
        "guidance": "none",
        "samples": 50_000,
    }
    return PublishedNumber(**(given | fields))


def ratio(value: float, *of: str, **fields: Any) -> Ratio:
    given = {"id": "r", "source": "abstract", "status": "abstract", "method": "ours", "baseline": "base"}
    return Ratio(**(given | {"dataset": "D", "value": value, "places": 1, "of": of} | fields))


def found(rule: str, *numbers: PublishedNumber, **pointers: Any) -> list[Finding]:
    return list(RULES[rule](Literature(numbers, **pointers)))


# ---- arithmetic


@pytest.mark.parametrize(
    ("value", "places", "severity"),
    [
        (17.5, 1, "holds"),
        (17.4, 1, "contradiction"),
        (17.0, 0, "holds"),  # 17.5 rounds either way
        (18.0, 0, "holds"),
        (19.0, 0, "contradiction"),
        (20.0, -1, "holds"),
        (70.0, -1, "contradiction"),
    ],
)
def test_ratio_is_recomputed_to_its_printed_places(value: float, places: int, severity: str) -> None:
    long, short = number("long", steps=7_000_000), number("short", steps=400_000, arm="ours")
    (one,) = found("arithmetic", long, short, ratios=(ratio(value, "long", "short", places=places),))
    assert one.severity == severity and "7M / 400k = 17.5" in one.text
    assert one.ids == ("long", "short") and one.sources == ("P Table 1", "abstract")


def test_ratio_of_values_is_checked_and_one_without_numbers_is_not() -> None:
    slow, fast = number("slow", 0.115), number("fast", 0.096)
    (one,) = found("arithmetic", slow, fast, ratios=(ratio(1.2, "slow", "fast", quantity="value"),))
    assert one.severity == "holds" and "0.115 / 0.096 = 1.198" in one.text
    (one,) = found("arithmetic", number("a", steps="unstated"), fast, ratios=(ratio(1.2, "a", "fast"),))
    assert one.severity == "warning" and "cannot be recomputed" in one.text


@pytest.mark.parametrize(("short", "reading"), [(7.9, "a lower bound"), (8.9, "an upper bound"), (8.3, None)])
def test_ratio_between_unequal_values_is_called_a_bound(short: float, reading: str | None) -> None:
    ends = number("long", 8.3, steps=7_000_000), number("short", short, steps=400_000)
    (one,) = found("arithmetic", *ends, ratios=(ratio(17.5, "long", "short"),))
    assert (f"17.5 is {reading}" in one.text) if reading else ("bound" not in one.text)


# ---- ratios carried across benchmarks

SPEEDUP = {"measure": "convergence_speedup", "arm": "ours", "rival": "base", "steps": "n/a"}
STEPS = {"measure": "steps_to_baseline_FID", "arm": "ours", "rival": "base", "steps": "n/a", "places": -3}
ELSEWHERE = number("speedup", 2.8, dataset="T2I", **SPEEDUP)
CLAIM = number("claim", 143_000.0, **STEPS)
DONOR = number("donor", 7.9, steps=400_000)


def test_step_count_from_a_ratio_of_another_benchmark_is_found() -> None:
    (one,) = found("across-benchmarks", CLAIM, ELSEWHERE, DONOR)
    assert one.severity == "warning" and set(one.ids) == {"claim", "speedup", "donor"}
    assert "143k" in one.text and "400k" in one.text and "2.8" in one.text and "T2I" in one.text


@pytest.mark.parametrize(
    "numbers",
    [
        (CLAIM, ELSEWHERE.model_copy(update={"dataset": "D"}), DONOR),  # the speed-up was measured here
        (CLAIM.model_copy(update={"value": 150_000.0}), ELSEWHERE, DONOR),  # another number of steps
        (CLAIM, ELSEWHERE, DONOR.model_copy(update={"network": "N"})),
        (CLAIM, ELSEWHERE, DONOR.model_copy(update={"arm": "third"})),
        (CLAIM, ELSEWHERE.model_copy(update={"rival": "third"}), DONOR),
    ],
)
def test_measured_step_count_has_no_finding(numbers: tuple[PublishedNumber, ...]) -> None:
    assert found("across-benchmarks", *numbers) == []


def test_other_printed_numbers_contradict_a_borrowed_step_count() -> None:
    later = number("later", 3_000_000.0, **(STEPS | {"measure": "steps_to_overtake_base"}))
    behind = number("o", 10.5, arm="ours", steps=400_000), number("b", 7.5, steps=400_000)
    (one,) = found("across-benchmarks", CLAIM, ELSEWHERE, later, *behind)
    assert one.severity == "contradiction" and {"later", "o", "b"} <= set(one.ids)
    assert "only at 3M" in one.text and "10.5 against 7.5 at 400k" in one.text
    ahead = number("o", 7.0, arm="ours", steps=400_000), number("b", 7.5, steps=400_000)
    early = later.model_copy(update={"value": 100_000.0})
    (one,) = found("across-benchmarks", CLAIM, ELSEWHERE, early, *ahead)
    assert one.severity == "warning"


# ---- protocols


@pytest.mark.parametrize(
    ("fields", "statement"),
    [
        ({"sampler": "ODE250"}, "sampler SDE250 / ODE250"),
        ({"guidance": "CFG 1.5"}, "guidance none / CFG 1.5"),
        ({"samples": 10_000}, "samples 50,000 / 10,000"),
        ({"labels": "balanced"}, "labels unstated / balanced"),
        ({"labels": "random"}, None),
        ({"sampler": "unstated"}, None),
        ({"samples": None}, None),
        ({"guidance": "unstated"}, None),
        ({"network": "N"}, "network M / N"),
    ],
)
def test_comparison_across_protocols_is_found(fields: dict[str, Any], statement: str | None) -> None:
    pair = number("a", source="A"), number("b", source="B", **fields)
    made = Comparison(id="c", source="somebody", of=("a", "b"))
    findings = [f for f in found("protocol", *pair, comparisons=(made,)) if f.severity == "warning"]
    assert [statement in f.text for f in findings] == ([True] if statement else [])
    assert all(f.sources == ("A", "B", "somebody") for f in findings)


@pytest.mark.parametrize(
    ("printed", "parts"),
    [
        ("none", (False, None, None)),
        ("unstated", (None, None, None)),
        ("CFG", (True, None, None)),
        ("guided", (True, None, None)),
        ("CFG 1.35", (True, 1.35, False)),
        ("CFG (interval)", (True, None, True)),
        ("CFG 1.8 interval .7", (True, 1.8, True)),
    ],
)
def test_guidance_is_parsed_from_its_printed_form(printed: str, parts: tuple[Any, ...]) -> None:
    assert guided(number("a", guidance=printed)) == parts


def test_unstated_fields_match_anything_and_mismatch_is_symmetric() -> None:
    everything = load_literature().numbers[::17]
    for a in everything:
        assert mismatch(a, a) == []
        for b in everything:
            assert len(mismatch(a, b)) == len(mismatch(b, a))


def test_table_of_methods_without_a_common_protocol_is_found() -> None:
    plain, other = number("a"), number("b", arm="ours", sampler="ODE50")
    (one,) = found("protocol", plain, other)
    assert one.severity == "note" and one.ids == ("a", "b") and "ODE50" in one.text
    both = number("c", arm="ours")  # ours under the sampler of the baseline as well
    assert found("protocol", plain, other, both) == []
    assert found("protocol", plain, other.model_copy(update={"source": "P Table 2"})) == []


def test_cell_under_two_protocols_in_two_papers_is_found() -> None:
    mine, yours = number("a"), number("b", paper="q", source="Q Table 1", samples=10_000)
    (one,) = found("protocol", mine, yours)
    assert one.severity == "note" and "10,000" in one.text and set(one.ids) == {"a", "b"}
    assert found("protocol", mine, yours.model_copy(update={"samples": 50_000})) == []
    assert found("protocol", mine, yours.model_copy(update={"steps": 200_000})) == []
    assert found("protocol", mine, yours.model_copy(update={"status": "figure_estimate"})) == []


# ---- drift


@pytest.mark.parametrize(
    ("value", "places", "fires"),
    [
        (33.02, 2, False),  # prints as 33.0
        (33.05, 2, False),
        (33.06, 2, True),
        (33.0, 0, False),
        (34.0, 0, True),
        (24.4, 1, True),
    ],
)
def test_baseline_quoted_with_another_value_is_found(value: float, places: int, fires: bool) -> None:
    theirs = number("b", value, places=places, paper="q", source="Q")
    findings = found("drift", number("a", 33.0), theirs)
    assert [f.sources for f in findings] == ([("P Table 1", "Q")] if fires else [])
    assert differ(number("a", 33.0), theirs) == differ(theirs, number("a", 33.0)) == fires


def test_other_cells_protocols_and_readings_are_no_drift() -> None:
    for fields in (
        {"steps": 1},
        {"network": "N"},
        {"sampler": "ODE250"},
        {"arm": "ours"},
        {"status": "figure_estimate"},
        {"status": "secondary"},
        {"dataset": "E"},
    ):
        assert found("drift", number("a", 33.0), number("b", 24.4, source="Q", **fields)) == []


# ---- margins

SPREAD = KnownSpread(id="s", source="lab", what="trainings of base", metrics=("FID",), of=("s1", "s2"))
KNOWN = number("s1", 10.0, source="lab"), number("s2", 10.5, source="lab")  # They differ by 4.9 %.


@pytest.mark.parametrize(("ours", "fires"), [(7.9, True), (7.7, True), (7.6, False), (4.0, False)])
def test_margin_below_the_known_spread_is_found(ours: float, fires: bool) -> None:
    """Against 8.0: 1.3 and 3.8 % are below 4.9 %, 5.1 and 67 % are not."""
    race = number("o", ours, arm="ours", rival="base"), number("b", 8.0)
    findings = [f for f in found("margin", *race, *KNOWN, spreads=(SPREAD,)) if "P Table 1" in f.sources]
    assert bool(findings) == fires
    if fires:
        assert findings[0].sources == ("P Table 1", "lab") and "4.9 %" in findings[0].text


@pytest.mark.parametrize(
    "fields",
    [
        {"seeds": 5},
        {"dataset": "E"},
        {"measure": "IS"},
        {"guidance": "CFG 1.5"},
        {"steps": 200_000},
        {"status": "figure_estimate"},
    ],
)
def test_margin_without_a_known_spread_has_no_finding(fields: dict[str, Any]) -> None:
    race = number("o", 7.9, arm="ours", rival="base", **fields), number("b", 8.0)
    findings = found("margin", *race, *KNOWN, spreads=(SPREAD,))
    assert not any("o" in f.ids for f in findings)


def test_best_two_of_a_table_are_compared() -> None:
    table = [number(name, value, arm=name) for name, value in (("x", 1.42), ("y", 1.44), ("z", 2.0))]
    (one,) = found("margin", *table, *KNOWN, spreads=(SPREAD,))
    assert one.ids == ("x", "y")


def test_smallest_known_spread_counts() -> None:
    tight = KnownSpread(id="t", source="lab 2", what="samplings", metrics=("FID",), of=("t1", "t2"))
    known = (*KNOWN, number("t1", 10.0, source="lab 2"), number("t2", 10.1, source="lab 2"))
    race = number("o", 7.7, arm="ours", rival="base"), number("b", 8.0)
    assert not any("o" in f.ids for f in found("margin", *race, *known, spreads=(SPREAD, tight)))
    assert relative(*known[2:]) == pytest.approx(0.1 / 10.05)


# ---- prose


def test_text_that_its_figure_contradicts_is_found() -> None:
    statement = number(
        "c", 1.0, arm="without", rival="ours", measure="FID_degradation_over", steps="n/a", source="Sec 4"
    )
    figure = [
        number(f"{arm}{step}", value, arm=arm, steps=step, source="Fig 1", status="figure_estimate")
        for step, values in ((100, (12.0, 10.0)), (200, (9.5, 9.0)))
        for arm, value in zip(("without", "ours"), values, strict=True)
    ]
    (one,) = found("prose", statement, *figure)
    assert one.severity == "note" and "2 at 100, 0.5 at 200" in one.text
    assert one.sources == ("Sec 4", "Fig 1")
    assert found("prose", statement, *figure[:2]) == []


# ---- the numbers that come with flowrace


@pytest.fixture(scope="module")
def shipped() -> list[Finding]:
    return check_literature(load_literature())


def one_with(findings: list[Finding], rule: str, *ids: str) -> Finding:
    hits = [f for f in findings if f.rule == rule and set(ids) <= set(f.ids)]
    assert len(hits) == 1, hits
    return hits[0]


def curve(arm: str, values: dict[int, float], **fields: Any) -> list[PublishedNumber]:
    """Return the readings of a method's curve in a figure."""
    given = {"arm": arm, "status": "figure_estimate", "source": "P Fig 5", "rival": None} | fields
    return [number(f"{arm}.{step}", value, steps=step, **given) for step, value in values.items()]


def speedup(value: float) -> PublishedNumber:
    return number("claim", value, arm="ours", rival="base", measure="convergence_speedup", steps="n/a")


BASE = {200_000: 9.0, 400_000: 8.0, 800_000: 8.0}


def test_speedup_that_a_figure_gives_only_at_one_target_is_found() -> None:
    """Ours has 8.0 at 250k, between its readings, so the factors are 400 / 250 and 800 / 250."""
    ours = curve("ours", {200_000: 8.5, 300_000: 7.5})
    (one,) = found("targets", speedup(3.2), *ours, *curve("base", BASE))
    assert one.severity == "warning" and one.text.endswith(
        "gives 1.6 to 3.2 (FID 8.0: 400k / 250k = 1.6, FID 8.0: 800k / 250k = 3.2)"
    )
    assert {"claim", "ours.200000", "ours.300000", "base.400000", "base.800000"} == set(one.ids)


def test_reading_of_the_step_is_used_instead_of_the_readings_around_it() -> None:
    reading = curve("ours", {1: 400_000.0}, measure="steps_to_FID_8.0")
    ours = curve("ours", {200_000: 8.5, 300_000: 7.5})
    (one,) = found("targets", speedup(3.2), *ours, *reading, *curve("base", BASE))
    assert "gives 1.0 to 2.0" in one.text


@pytest.mark.parametrize(
    ("base", "fields"),
    [
        ({400_000: 8.0}, {}),
        (BASE, {"status": "table"}),
        (BASE, {"dataset": "other"}),
        (BASE, {"network": "other"}),
        ({800_000: 9.0}, {}),
    ],
    ids=["same", "printed", "data", "network", "before_the_curve"],
)
def test_speedup_without_another_reading_has_no_finding(
    base: dict[int, float], fields: dict[str, Any]
) -> None:
    ours = curve("ours", {200_000: 8.5, 300_000: 7.5}, **fields)
    assert found("targets", speedup(1.6), *ours, *curve("base", base, **fields)) == []


def test_2_8_times_of_self_flow_is_1_7_at_another_target(shipped: list[Finding]) -> None:
    one = one_with(shipped, "targets", "sf.claim.2.8x")
    assert "600k / 360k = 1.7" in one.text and "1M / 360k = 2.8" in one.text
    assert [finding for finding in shipped if finding.rule == "targets"] == [one]


def test_all_shipped_ratios_but_one_hold(shipped: list[Finding]) -> None:
    sit, repa = "repa.vanilla(T3).SiT-XL-2.7000000.FID", "repa.REPA(T3).SiT-XL-2.400000.FID"
    press = "sf.claim.7M-400k-143k"
    over = one_with(shipped, "arithmetic", sit, repa)
    assert over.severity == "holds" and "7M / 400k = 17.5" in over.text and "a lower bound" in over.text
    carried = one_with(shipped, "arithmetic", repa, press)
    assert carried.severity == "holds" and "400k / 143k = 2.797" in carried.text
    factors = {f.severity: f.text for f in shipped if f.rule == "arithmetic" and {sit, press} <= set(f.ids)}
    assert "50" in factors["holds"] and "70" in factors["contradiction"]  # 48.95 is about 50, not 70


def test_143k_steps_of_the_press_are_found(shipped: list[Finding]) -> None:
    one = one_with(
        shipped, "across-benchmarks", "sf.claim.7M-400k-143k", "sf.claim.2.8x", "sf.claim.overtake-3M"
    )
    assert one.severity == "contradiction"
    assert any("Fig 1a" in s for s in one.sources) and any("Fig 20a" in s for s in one.sources)
    assert [f for f in shipped if f.rule == "across-benchmarks"] == [one]


def test_margin_of_self_flow_over_repa_is_within_the_spread(shipped: list[Finding]) -> None:
    one = one_with(
        shipped, "margin", "sf.Self-Flow.SiT-XL-2.4000000.FID", "sf.REPA-DINOv2-B.SiT-XL-2.4000000.FID"
    )
    assert "5.70 against REPA-DINOv2-B 5.89, 3.3 %" in one.text


def test_shipped_baselines_with_several_values_are_found(shipped: list[Finding]) -> None:
    repa = one_with(shipped, "drift", "repa.REPA(T3).SiT-B-2.400000.FID")
    assert all(value in repa.text for value in ("24.4", "22.38", "23.0", "22.75", "27.33"))
    sit = one_with(shipped, "drift", "sf.vanilla-SiT.SiT-XL-2.7000000.IS")
    assert "130.57" in sit.text and "131.65" in sit.text
    assert one_with(shipped, "drift", "sra.text.SRA.FID", "sra.SRA.MMDiT.150000.FID")
    assert not any("sf.vanilla-SiT.SiT-XL-2.7000000.FID" in f.ids for f in shipped if f.rule == "drift")


def test_shipped_protocol_differences_are_found(shipped: list[Finding]) -> None:
    stated = [f for f in shipped if f.severity == "warning"]  # A source makes these comparisons.
    ode = one_with(stated, "protocol", "user.sit31-xl", "sit.SiT.SiT-XL-2.7000000.FID")
    assert "sampler ODE250 / SDE250" in ode.text
    few = one_with(shipped, "protocol", "as.single-full(SRA).SiT-B-2.400000.FID10K")
    assert "10,000 samples" in few.text and "sra.SRA_3->8.SiT-B-2.400000.FID" in few.ids
    assert "balanced" in one_with(shipped, "protocol", "srdit.SR-DiT-B-1_140M.SiT-B-1.400000.FID").text


def test_every_finding_names_its_sources_and_numbers(shipped: list[Finding]) -> None:
    known = load_literature().by_id
    for finding in shipped:
        assert finding.ids and finding.sources and all(name in known for name in finding.ids)
        assert {known[name].source for name in finding.ids} <= set(finding.sources)
        assert "\n" not in finding.text and len(finding.text) > 30
    order = ["contradiction", "warning", "note", "holds"]
    ranks = [order.index(finding.severity) for finding in shipped]
    assert ranks == sorted(ranks) and check_literature(load_literature()) == shipped


def test_count() -> None:
    assert [count(x) for x in (7e6, 400_000, 1_500, 0.115, "n/a")] == ["7M", "400k", "1.5k", "0.115", "n/a"]
