"""Scaling with the encoder and with the model: hand-made records, trends checked with scipy, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats

from harness.errors import UserError
from reports.analysis.report import RaceReport
from reports.analysis.scaling import Scaling, Trend, encoder_scaling, kind_of
from reports.pages import scaling
from reports.race.race import read_race
from tests.reports.synthetic import power_law, write_run

PARAMS = {"tiny": 1e4, "small": 1e5, "base": 1e6, "large": 1e7}
FACTORS = {"tiny": 1.2, "small": 1.6, "base": 1.4, "large": 2.0}
"""The speed-up over flow of an objective with this encoder."""
ACCURACY = {"tiny": 0.5, "small": 0.6, "base": 0.7, "large": 0.8}


def write_study(folder: Path, methods: tuple[str, ...] = ("repa",)) -> Path:
    """Write runs in which flow reaches a target T at (1000 / T) ** 2; random encoders have no effect."""
    for seed in range(3):
        write_run(folder / f"flow-{seed}", "flow", seed)
        for method in methods:
            for size, factor in FACTORS.items():
                for family, speed in (("local", factor), ("random", 1.0)):
                    name = f"{family}:{size}"
                    write_run(
                        folder / f"{method}-{family}-{size}-{seed}",
                        method,
                        seed,
                        metric=power_law(1000 * speed**-0.5 * 1.01**seed, 0.5),
                        set_={"method.encoder.name": name},
                        environment={"encoders": [{"name": name, "params": int(PARAMS[size])}]},
                    )
    return folder


def write_table(folder: Path) -> None:
    known = {
        f"{family}:{size}": {
            "accuracy": {"mean": accuracy},
            "cknna": None,
            "local_distant": {"mean": -accuracy},
        }
        for family in ("local", "random")
        for size, accuracy in ACCURACY.items()
    }
    protocol = {"classifier": "ridge", "samples": 2000, "control": "flow-0/step-00000001"}
    (folder / "encoders.json").write_text(json.dumps({"protocol": protocol, "encoders": known}))


def trend(found: Scaling, x: str, y: str) -> Trend:
    return next(trend for trend in found.trends if (trend.x, trend.y) == (x, y))


def test_points_are_arms_and_controls(tmp_path: Path) -> None:
    found = encoder_scaling(read_race([write_study(tmp_path)], target=30))
    assert found.xs == ("params",)
    kinds = [point.kind for point in found.points]
    assert (kinds.count("trained"), kinds.count("random"), kinds.count("none")) == (4, 4, 1)
    for point in found.points:
        assert point.group == ("flow" if point.kind == "none" else "repa")
        size = point.name.partition(":")[2]
        if point.kind == "trained":
            assert point.x == {"params": PARAMS[size]}
            assert point.gain.estimate == pytest.approx(FACTORS[size] / 1.01**2, rel=1e-6)
            shared = 1000 * FACTORS[size] ** -0.5 * 1.01
            assert point.final.estimate == pytest.approx(shared * 2000**-0.5)


def test_rank_correlations_match_scipys_with_and_without_random_encoders(tmp_path: Path) -> None:
    found = trend(encoder_scaling(read_race([write_study(tmp_path)], target=30)), "params", "gain")
    sizes = list(PARAMS)
    trained = stats.spearmanr([PARAMS[s] for s in sizes], [FACTORS[s] for s in sizes]).statistic
    every = stats.spearmanr([PARAMS[s] for s in sizes * 2], [FACTORS[s] for s in sizes] + [1.0] * 4).statistic
    assert found.rank.rho == pytest.approx(trained) and found.rank.n == 4
    assert found.with_random.rho == pytest.approx(every) and found.with_random.n == 8
    assert found.bounded == 0


def test_slope_recovers_a_power_law(tmp_path: Path) -> None:
    """Times fall as params ** -0.1 for every seed."""
    for seed in range(3):
        for size, params in PARAMS.items():
            name = f"local:{size}"
            write_run(
                tmp_path / f"{size}-{seed}",
                "repa",
                seed,
                metric=power_law(300 * params**-0.05 * 1.02**seed, 0.5),
                grid=range(10, 2001, 10),
                set_={"method.encoder.name": name},
                environment={"encoders": [{"name": name, "params": int(params)}]},
            )
    found = trend(
        encoder_scaling(read_race([tmp_path], target=10, baseline="repa (encoder = local:tiny)")),
        "params",
        "time",
    )
    assert found.slope.estimate == pytest.approx(-0.1, abs=1e-4)
    assert (found.slope.n, found.slope.seeds) == (12, 3)
    # 10 ** -0.1
    assert scaling.slope_text(found.slope, "params").startswith("×0.79 ")


@pytest.mark.slow
def test_probe_scores_come_from_the_table_of_encoders(tmp_path: Path) -> None:
    write_table(write_study(tmp_path))
    found = encoder_scaling(read_race([tmp_path], target=30))
    assert found.xs == ("params", "accuracy", "local_distant")
    assert trend(found, "local_distant", "gain").rank.rho == pytest.approx(
        -trend(found, "accuracy", "gain").rank.rho
    )
    page = scaling.encoder_section(RaceReport(read_race([tmp_path], target=30)))
    assert "flow-0/step-00000001" in page and "flowrace probe" not in page


def test_page_names_the_command_when_the_table_is_absent(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "a<b")
    page = scaling.encoder_section(RaceReport(read_race([folder], target=30)))
    assert f"flowrace probe {tmp_path}/a&lt;b" in page and "a<b" not in page
    assert "flow: no encoder (control)" in page and len(page) < 300_000


@pytest.mark.parametrize("text", ["{", "[]", '{"protocol": {}}', '{"protocol": 1, "encoders": {}}'])
def test_invalid_table_is_named(tmp_path: Path, text: str) -> None:
    write_study(tmp_path)
    (tmp_path / "encoders.json").write_text(text)
    with pytest.raises(
        UserError, match="not a valid table of encoders; move it away and run: flowrace probe"
    ):
        encoder_scaling(read_race([tmp_path], target=30))


def test_race_of_one_encoder_has_no_scaling(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "flow")
    write_run(tmp_path / "b", "repa", set_={"method.encoder.name": "local:tiny"})
    race = read_race([tmp_path])
    assert encoder_scaling(race) is None and scaling.encoder_section(RaceReport(race)) is None
    assert RaceReport(race).model_scaling is None and scaling.size_section(RaceReport(race)) is None


def test_runs_that_never_reach_the_target_are_bounds(tmp_path: Path) -> None:
    write_study(tmp_path)
    found = encoder_scaling(read_race([tmp_path], target=20))
    late = [point for point in found.points if point.time.right]
    assert {point.name for point in late} >= {"local:tiny", "random:tiny", ""}
    assert not {"local:base", "local:large"} & {point.name for point in late}
    assert trend(found, "params", "time").bounded == sum(point.kind == "trained" for point in late)
    assert trend(found, "params", "final").bounded == 0


def test_sizes_are_compared_within_their_own_cells(tmp_path: Path) -> None:
    sizes = {"pico": (1e5, 1.2), "nano": (3e5, 1.5), "micro": (1e6, 2.5), "S": (3e6, 2.0)}
    for seed in range(3):
        for size, (params, factor) in sizes.items():
            for method, speed in (("flow", 1.0), ("repa", factor)):
                scale = 1000 * params**-0.1 * speed**-0.5 * 1.01**seed
                set_, about = {"backbone.size": size}, {"params": int(params)}
                path = tmp_path / f"{method}-{size}-{seed}"
                write_run(path, method, seed, metric=power_law(scale, 0.5), set_=set_, environment=about)
    race = read_race([tmp_path])
    found = RaceReport(race).model_scaling
    gains = {point.name: point.gain.estimate for point in found.points if point.group == "repa"}
    assert gains == pytest.approx({size: factor for size, (_, factor) in sizes.items()}, rel=1e-4)
    gain = next(trend for trend in found.trends if (trend.group, trend.y) == ("repa", "gain"))
    assert gain.rank.rho == pytest.approx(0.8) and gain.rank.n == 4
    final = next(trend for trend in found.trends if (trend.group, trend.y) == ("flow", "final"))
    assert final.slope.estimate == pytest.approx(-0.1, abs=1e-6) and final.rank.rho == -1
    assert "Scaling with the model" in scaling.size_section(RaceReport(race))


def test_kind_of_reads_the_family_of_an_encoder() -> None:
    names = ("", None, "random:tiny", "cached:random:tiny", "timm:vit_random", "cached:local:tiny")
    assert [kind_of(name) for name in names] == ["none", "none", "random", "random", "trained", "trained"]
