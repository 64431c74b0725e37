"""Build the gallery of committed studies into a folder: `python scripts/gallery.py build/gallery`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The packages of this checkout are imported even if none is installed.
sys.path.insert(0, str(ROOT))


def main() -> None:
    from harness.errors import UserError
    from reports.gallery.site import write_gallery

    output = Path(sys.argv[1] if len(sys.argv) > 1 else "build/gallery")
    try:
        print(write_gallery(ROOT / "benchmarks" / "results", output)[0])
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
