"""What a process yields while it runs, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .evidence import Evidence
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
    """What a process found: the transform (fixed → moving, 4×4, RAS mm), whether it was refined, what is known of it,
    the probability that it is right, the way round by a template where it was asked, how alike the volumes are as in a
    mirror, where that is far more. details: for the report.
    """

    world: np.ndarray
    polished: bool
    evidence: Evidence
    probability: float
    detour: TemplateDetour | None = None
    mirrored: float | None = None
    details: dict = field(default_factory=dict)
