"""Frames of MuJoCo scenes, drawn without a window by EGL or OSMesa if this machine has one of them."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from ctypes.util import find_library
from typing import Any

import numpy as np

SIDE = 64
BACKENDS = {"egl": "EGL", "osmesa": "OSMesa"}
"""Name for MuJoCo -> name of the library."""
COSTLY = ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE")
"""Effects that are left out: without a GPU they take half a second a frame."""


class FrameDrawer:
    """A renderer of one scene, seen by a fixed camera."""

    shape = (SIDE, SIDE, 3)

    # Any: MuJoCo's model, data and renderer.
    def __init__(self, renderer: Any, camera: str) -> None:
        self._renderer, self._camera = renderer, camera

    def draw(self, data: Any) -> np.ndarray:
        """Return the frame uint8 (SIDE, SIDE, 3) of a state."""
        self._renderer.update_scene(data, camera=self._camera)
        # The cameras of Meta-World are upside down.
        return self._renderer.render()[::-1, ::-1].copy()


def choose_backend() -> None:
    """Choose a library before MuJoCo is imported, unless the variable `MUJOCO_GL` does."""
    found = [name for name, library in BACKENDS.items() if find_library(library)]
    if found and "mujoco" not in sys.modules:
        os.environ.setdefault("MUJOCO_GL", found[0])


def frame_drawer(model: Any, camera: str) -> FrameDrawer | None:
    """Return a drawer of a model's scenes; None if this machine cannot draw without a window."""
    # Any: MuJoCo, whose extension module has no types.
    mujoco: Any = importlib.import_module("mujoco")
    if os.environ.get("MUJOCO_GL") not in BACKENDS:
        return None
    model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
    # Libraries of OpenGL fail in many ways, at import or later.
    with contextlib.suppress(Exception):
        renderer = mujoco.Renderer(model, SIDE, SIDE)
        for name in COSTLY:
            renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{name}")] = 0
        return FrameDrawer(renderer, camera)
    return None
