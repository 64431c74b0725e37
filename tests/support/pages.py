"""Pages of reports without their figures, which take most of the time: for tests of texts and tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from markupsafe import Markup

BLANK = Markup('<svg role="img"></svg>')


def leave_out_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sections of a page have an empty figure at every width."""
    import reports.pages.page

    assert reports.pages.page

    def blank(draw: object, widths: Sequence[float] = (1, 2)) -> list[Markup]:
        return [BLANK for _ in widths]

    for name, module in list(sys.modules.items()):
        if name.startswith("reports.pages.") and hasattr(module, "drawings"):
            monkeypatch.setattr(module, "drawings", blank)
