"""What a process yields while it runs, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

import numpy as np

from .template_check import TemplateDetour


@dataclass(frozen=True)
class Step:
    """Where a running registration is: ``index`` of ``count``, a stage for people, and the matrix so far.

    matrix: 4×4 float64, moving → fixed, RAS mm.
    """

    index: int
    count: int
    stage: str
    matrix: np.ndarray


@dataclass
class Outcome:
    """What a process found: the transform, whether refinement changed it, mm between repeated runs, how far the network agrees,
    the way round by a template (TemplateDetour); the last three None where nobody asked. details: for the report."""

    world: np.ndarray
    polished: bool
    spread: Optional[float] = None
    agreement: Optional[float] = None
    way: Optional[TemplateDetour] = None
    details: dict = field(default_factory=dict)
