"""The seam of an objective: what it needs, what it draws, what it loses. No optimizer, device, file or logger in here.

    B  samples of a micro-batch     T  tokens     C, H, W  channels, height, width of x0
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
