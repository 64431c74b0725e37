"""The pages of the gallery: an index of cards, a page a study, and a report where a study has curves.

    index.html            a card a study, claims of papers, and all objectives over all studies
    <name>.html           the tables of one study
    <name>/               its CSV files, and report.html if it has curves

Every file opens offline, and every number is in a CSV file of its study.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from harness.errors import UserError
from harness.files.files import write_atomic
from reports.figures import svg
from reports.gallery.printed_claims import Printed, printed_of
from reports.gallery.study import ArmRow, GalleryStudy, read_studies
from reports.gallery.thumbnail import Drawing, draw_curves, draw_gains
from reports.gallery.verdict import AXES, NAMES, cell_text, cost, gain_text, time_text, verdict
from reports.logs.read import read_logs_of
from reports.pages.page import write_report
from reports.pages.section import environment, source

INDEX, REPORT = "index.html", "report.html"


@dataclass(frozen=True)
class Card:
    """The contents of a study on the index and on its page."""

    study: GalleryStudy

    @cached_property
    def verdict(self) -> list[str]:
        return verdict(self.study.main)

    @cached_property
    def cost(self) -> str:
        return cost(self.study)

    @cached_property
    def thumbnail(self) -> Drawing:
        """The curves of the main metric, or the intervals of the speed-ups of a study without curves."""
        main, curves = self.study.main, self.study.curves
        drawn = None
        if curves is not None:
            found = read_logs_of([curves], wanted=lambda _, metric: metric == main.metric).curves
            drawn = draw_curves(found, main.targets[0] if len(main.targets) == 1 else None, main.metric)
        return drawn or draw_gains(main)

    @cached_property
    def printed(self) -> list[tuple[Printed, list[ArmRow]]]:
        """The printed comparisons, each next to the measured arms of its objective in steps."""
        rows = self.study.main.compared("steps")
        return [(one, [row for row in rows if row.objective == one.method]) for one in printed_of(self.study)]

    @property
    def has_report(self) -> bool:
        return self.study.curves is not None


def write_gallery(root: Path, output: Path, *, readings: str = "") -> list[Path]:
    """Write the gallery of the studies in a folder, and return the pages.

    `readings` is the address of the readings' folder seen from the index, empty without them. Raises
    `UserError` for a study that is broken, before anything is written.
    """
    cards = [Card(study) for study in read_studies(root)]
    pages = render(cards, readings=readings)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for card in cards:
            folder = output / card.study.name
            folder.mkdir(exist_ok=True)
            for file in card.study.files:
                shutil.copyfile(file, folder / file.name)
            if card.has_report:
                _write_report(card.study, folder / REPORT)
        for name, text in pages.items():
            write_atomic(output / name, text.encode())
    except OSError as error:
        raise UserError(f"cannot write {error.filename or output}: {error.strerror}") from error
    return [output / name for name in pages]


def render(cards: Sequence[Card], *, readings: str = "") -> dict[str, str]:
    """Return the pages of a gallery by their names."""
    shared = {
        "version": version("flowrace"),
        "style": source("report.css"),
        "own_style": source("gallery.css"),
        "colours": list(zip(svg.ARMS, svg.ARMS_DARK, strict=True)),
        "axes": AXES,
        "axis_names": NAMES,
        "gain_text": gain_text,
        "cell_text": cell_text,
        "time_text": time_text,
        "readings": readings,
        "report": REPORT,
    }
    engine = environment()
    pages = {INDEX: engine.get_template("gallery.html.j2").render(cards=cards, **shared)}
    for card in cards:
        template = engine.get_template("gallery_study.html.j2")
        pages[f"{card.study.name}.html"] = template.render(card=card, study=card.study, **shared)
    return pages


def _write_report(study: GalleryStudy, output: Path) -> None:
    """Write the report of a study's curves, at the metric and the target of its main table."""
    assert study.curves is not None
    main = study.main
    write_report(
        [study.curves],
        output,
        metric=main.metric,
        target=main.targets[0] if len(main.targets) == 1 else None,
        baseline=main.rows[0].baseline,
        claims=study.claims,
    )
