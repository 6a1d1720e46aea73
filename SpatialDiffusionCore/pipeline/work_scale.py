"""Lengths in the units of the work: volumes of any kind are registered as if their tissue measured REFERENCE_SIZE.

Search, refinement and checks count in millimeters of a head. Where a strategy is for any anatomy, both headers are
scaled by one factor before the work and the answer is scaled back after it, so a mouse brain of 1 cm and a torso of
60 cm take the same course, and scaling both headers by any factor scales the answer and changes nothing else.
"""

from __future__ import annotations

import numpy as np

from ..spatial.sampling import Prepared

#: mm: the size (twice the RMS radius of the tissue) at which volumes are worked on. Stripped brains measure about 110,
#: whole heads 165; the networks were trained on both. Chosen between them, untested.
REFERENCE_SIZE = 150.0


def work_scale(moving: Prepared, fixed: Prepared) -> float:
    """The factor from millimeters to units of the work; the same whichever volume is the moving one."""
    return float(REFERENCE_SIZE / np.sqrt(moving.size * fixed.size))


def in_work_units(matrix: np.ndarray, scale: float) -> np.ndarray:
    """A 4×4 RAS → RAS matrix in mm as one in units of the work, where 1 mm is ``scale`` units; 1/scale: back."""
    result = np.array(matrix, float)
    result[:3, 3] *= scale
    return result
