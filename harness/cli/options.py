"""Options that several commands share."""

from __future__ import annotations

import click

SETTING = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=VALUE",
    help="Override a field of the spec; may be repeated.",
)


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")


STEP = click.option("--step", type=int, help="Which checkpoint; the newest by default.")
