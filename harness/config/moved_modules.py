"""Import paths of version 0.1.0, kept for plug-ins: `harness.path` now is `harness.flow.path`.

`registry.load` installs the finder before it imports a plug-in; nothing else uses the old paths.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

MOVED = {
    "harness.batch": "harness.flow.batch",
    "harness.codecs": "harness.latents",
    "harness.codecs.base": "harness.latents.codec",
    "harness.data.arrays": "harness.data.disk.arrays",
    "harness.data.base": "harness.data.open",
    "harness.data.folder": "harness.data.disk.folder",
    "harness.draws": "harness.runtime.random_streams",
    "harness.exact": "harness.runtime.precision",
    "harness.path": "harness.flow.path",
    "harness.registry": "harness.config.registry",
    "harness.spec": "harness.config.spec",
    "harness.backbone.student": "harness.flow.student",
    "methods.align": "methods.common.alignment",
    "methods.dual": "methods.common.dual_timesteps",
    "methods.encoded": "methods.common.encoder_alignment",
    "methods.present": "methods.common.missing_parts",
}
RENAMED: dict[str, dict[str, str]] = {
    "methods.common.alignment": {"apart": "distance", "mean_apart": "mean_distance"},
}
"""Current module -> its renamed attributes: name in 0.1.0 -> current name."""


def install() -> None:
    """Make the old paths importable in this process. Further calls change nothing."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)


class _Moved(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = any(name.startswith(f"{fullname}.") for name in MOVED)
        return spec_from_loader(fullname, self, is_package=package) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        current = MOVED[module.__name__]
        names = vars(importlib.import_module(current))
        module.__dict__.update({name: value for name, value in names.items() if not name.startswith("__")})
        module.__dict__.update({old: names[new] for old, new in RENAMED.get(current, {}).items()})


_FINDER = _Moved()
