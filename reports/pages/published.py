"""Published curves, in a separate panel with their own axes and protocol.

They are never drawn into the chart of measured curves. A value from another data set, sampler or number of
samples is a different quantity, even under the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup
from matplotlib.figure import Figure

from harness.errors import UserError
from reports.analysis.report import RaceReport
from reports.figures.layout import fill, padded, ticks, width_name
from reports.figures.strips import set_log_ticks
from reports.figures.svg import MUTED, Picture, scaled, small, style
from reports.literature.database import PublishedCurve, load_literature, published_curves, select
from reports.pages.section import drawings, render_template

SIZE, METRIC = "XL", "FID"
"""The size and the metric of a request that does not name them."""
DASHES = ((4, 2), (1, 1.5), (6, 1.5, 1, 1.5), (2, 2))
MARKERS = "osD^vP"
"""Curves are all grey: dashes and marks distinguish them."""


@dataclass(frozen=True)
class PublishedRequest:
    """The published curves of one request."""

    text: str
    """The request as given, `METHOD[:SIZE[:METRIC]]`."""
    metric: str
    curves: tuple[PublishedCurve, ...]


def find_curves(requests: Sequence[str]) -> list[PublishedRequest]:
    """Return the curves of requests `METHOD[:SIZE[:METRIC]]`.

    Raises `UserError` for an invalid request, an unknown method or metric, and a request without a
    published curve.
    """
    return [_find(request) for request in requests]


def published_section(report: RaceReport, printed: Sequence[PublishedRequest]) -> Markup | None:
    """Return the section; None without a request."""
    if not printed:
        return None
    panels = [
        {
            "metric": metric,
            "pictures": drawings(partial(draw_published, metric, curves, number)),
            "curves": _rows(curves),
        }
        for number, (metric, curves) in enumerate(by_metric(printed).items())
    ]
    return render_template("published", report.race, panels=panels)


def draw_published(metric: str, curves: Sequence[PublishedCurve], number: int, width: float) -> Picture:
    """Draw curves as grey dashed lines with a mark at each published number; the legend names the sources."""
    with style():
        figure = Figure(figsize=(width, 0.34 * width + 0.7 + scaled(0.17) * len(curves)))
        axes = figure.subplots()
        for index, curve in enumerate(curves):
            look = {"dashes": DASHES[index % len(DASHES)], "marker": MARKERS[index % len(MARKERS)]}
            axes.plot(
                curve.steps,
                curve.values,
                color=MUTED,
                linewidth=0.9,
                markersize=3,
                label=label(curve),
                **look,
            )
        x = padded([step for curve in curves for step in curve.steps])
        y = padded([value for curve in curves for value in curve.values])
        axes.set(xscale="log", yscale="log", xlim=x, ylim=y)
        axes.set(xlabel="steps as published, log scale", ylabel=f"{metric} as published, log scale")
        set_log_ticks(axes.xaxis, x, ticks(width))
        set_log_ticks(axes.yaxis, y, 7)
        axes.grid(True, axis="y")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=small(), handlelength=3.2
        )
        fill(figure, left=0.62, top=0.1 + scaled(0.165) * len(curves))
        return Picture(figure, f"published-{number}-{width_name(width)}", f"published {metric} against steps")


def label(curve: PublishedCurve) -> str:
    """Return a legend entry, for example `published: REPA, Table 7 (repa, ImageNet-256)`.

    The place in the paper is left out if the source is only an address.
    """
    place = curve.source.partition(" ")[2]
    return f"published: {curve.method}{place and ', ' + place} ({curve.paper}, {curve.dataset})"


def _find(request: str) -> PublishedRequest:
    method, size, metric = [*request.split(":"), "", ""][:3]
    if not method or request.count(":") > 2:
        raise UserError(f"--published {request}: expected METHOD[:SIZE[:METRIC]], for example repa:XL:FID")
    numbers = load_literature().numbers
    select(numbers, method=method, metric=metric or None)
    curves = published_curves(method, size or SIZE, metric or METRIC)
    if not curves:
        raise UserError(
            f"--published {request}: no published curve of {method} for size {size or SIZE} and "
            f"{metric or METRIC} (two steps or more under one protocol). "
            f"See: flowrace claims --method {method}"
        )
    return PublishedRequest(request, metric or METRIC, curves)


def by_metric(printed: Sequence[PublishedRequest]) -> dict[str, list[PublishedCurve]]:
    """Return the curves by metric, each once; curves of one metric share an axis."""
    groups: dict[str, list[PublishedCurve]] = {}
    for request in printed:
        group = groups.setdefault(request.metric, [])
        group += [curve for curve in request.curves if curve not in group]
    return groups


def _rows(curves: Sequence[PublishedCurve]) -> list[dict[str, str]]:
    return [
        {
            "method": curve.method,
            "dataset": curve.dataset,
            "sampler": curve.sampler,
            "guidance": curve.guidance,
            "samples": "unstated" if curve.samples is None else f"{curve.samples:,}",
            "status": curve.status.replace("_", " "),
            "source": f"{curve.paper}: {curve.source}",
            "points": "; ".join(f"{s:,}: {v:g}" for s, v in zip(curve.steps, curve.values, strict=True)),
        }
        for curve in curves
    ]
