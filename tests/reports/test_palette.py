"""The colours of the arms, with normal and deficient colour vision, on light and dark backgrounds."""

from __future__ import annotations

import math
import re
from itertools import combinations

import pytest

from reports.figures import svg
from reports.pages.section import source

# Machado, Oliveira and Fernandes 2009, table 1, severity 1.0: simulation of dichromats in linear RGB.
Eye = tuple[tuple[float, ...], ...]
NORMAL: Eye = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
DEUTERANOPIA: Eye = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
PROTANOPIA: Eye = (
    (0.152286, 1.052583, -0.204868),
    (0.114503, 0.786281, 0.099216),
    (-0.003882, -0.048116, 1.051998),
)


def lab(colour: str, vision: Eye) -> tuple[float, float, float]:
    """Return CIE L*a*b* (D65) of an sRGB colour as perceived with this kind of colour vision."""
    coded = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in coded]
    r, g, b = (min(max(sum(m * v for m, v in zip(row, linear, strict=True)), 0), 1) for row in vision)
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, from its L*."""
    lightness = lab(colour, NORMAL)[0]
    return ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness / 903.3


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", [NORMAL, DEUTERANOPIA, PROTANOPIA], ids=["normal", "deutan", "protan"])
@pytest.mark.parametrize("palette", [svg.ARMS, svg.ARMS_DARK], ids=["light", "dark"])
def test_arm_colours_differ_for_every_kind_of_colour_vision(palette: tuple[str, ...], vision: Eye) -> None:
    """Any two colours differ by 10 or more (CIE76; 2.3 is just noticeable)."""
    points = [lab(colour, vision) for colour in palette]
    assert min(math.dist(p, q) for p, q in combinations(points, 2)) >= 10


def test_arm_colours_contrast_with_the_background() -> None:
    """WCAG requires a contrast of 3 for graphics."""
    dark = re.search(r"dark\) \{.*?--paper: (#\w{6})", source("report.css"), re.DOTALL)[1]
    for palette, paper in ((svg.ARMS, svg.PAPER), (svg.ARMS_DARK, dark)):
        assert min(contrast(colour, paper) for colour in palette) >= 3


def test_colour_conversions_match_published_values() -> None:
    """The references are the L*a*b* of red in published tables, and the contrast 21 of black on white."""
    assert lab("#ff0000", NORMAL) == pytest.approx((53.24, 80.09, 67.20), abs=0.1)
    assert contrast("#000000", "#ffffff") == pytest.approx(21, abs=0.01)
