"""Build the gallery of committed studies into a folder: `python scripts/gallery.py build/gallery`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The packages of this checkout are imported even if none is installed.
sys.path.insert(0, str(ROOT))


def main() -> None:
    from harness.errors import UserError
    from reports.gallery.site import write_gallery

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/gallery"))
    output = parser.parse_args().folder
    try:
        print(write_gallery(ROOT / "benchmarks" / "results", output)[0])
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
