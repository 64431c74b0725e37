"""Lines that state what an import has found, before anything is written."""

from __future__ import annotations

from harness.data.found import Found, class_counts
from harness.latents.importing import Importing

HELD = {"std": "mean and standard deviation", "logvar": "mean and log-variance", "sample": "draws"}


def found_lines(job: Importing, difference: float | None) -> list[str]:
    """Return what was found, a line each.

    `difference` is the largest relative difference of encoded images to the stored means, None if it was not
    measured.
    """
    source, labels = job.source, job.source.labels
    counts = class_counts(labels.names, labels.classes, labels.labels) if labels.classes > 1 else ()
    found = Found(len(source), counts, source.label_source, labels.problem, source.skipped, source.files)
    flipped = "with mirrored copies" if source.records.copies == 2 else "no mirrored copies"
    shape = "x".join(map(str, job.shape))
    stored = f", stored with factor {job.scaling.stored:g}" if job.scaling.stored != 1 else ""
    spread = job.spread.normalised(job.scaling.of_stored())
    checked = "" if difference is None else f"; images encode to the stored means within {difference:.1%}"
    return [
        found.line(),
        f"layout {source.kind}: latents {shape} {source.records.dtype}, {HELD[job.holds]}, {flipped}",
        f"codec {job.codec.family or 'none'}{checked}; {_scale(job)} ({job.scaling.source}){stored}; "
        f"standard deviation {spread.std:.3g} after it",
        f"images {job.images_at or 'none'}, {job.pixels[-1]}x{job.pixels[-2]} pixels",
        *source.notes,
        *(["the mirrored copies equal the originals"] if _copies_equal(job) else []),
    ]


def _copies_equal(job: Importing) -> bool:
    """Return whether a sample of mirrored copies equals the originals, as some writers fill them in."""
    sampled = job.sampled
    return sampled.shape[1] == 2 and bool((sampled[:, 0] == sampled[:, 1]).all())


def _scale(job: Importing) -> str:
    shift, scale = job.scaling.affine
    if len(scale) > 1:
        return f"mean and standard deviation of {len(scale)} channels"
    return f"scale {max(scale):g}, shift {max(shift):g}"
