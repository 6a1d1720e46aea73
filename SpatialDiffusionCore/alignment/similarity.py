"""How alike two volumes are under a transform, and how well two label maps overlap.

==================  =================================================================================================
local similarity    mean squared correlation in small windows over the tissue: blind to contrast, 0…1; what answers
                    are judged by
correlation         of all of the common tissue, its sign left out, 0…1: knows only contrasts that go the same way or
                    the opposite way everywhere
information         mutual information of the common tissue as a share of the smaller entropy, 0…1: any contrast
rank (pair.py)      local similarity that forgives what is outside the field of view: what candidates are compared by
==================  =================================================================================================
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..networks.layers import blur, reach
from ..spatial.cube import Cube, bounds

#: Variance below which a window of intensities in 0…1 counts as flat.
FLAT = 1e-4

#: Bins of intensities for the mutual information.
BINS = 16


class Likeness(NamedTuple):
    """similarity: local, over one volume's tissue; overlap: the share of it inside the other's field of view."""

    similarity: float
    overlap: float


def local_similarity(
    fixed: torch.Tensor, moved: torch.Tensor, support: torch.Tensor, tissue: torch.Tensor, sigma: float = 2.0
) -> float:
    """Mean squared local correlation (Gaussian windows, sigma in voxels) of 1×1×D×H×W volumes over the tissue.

    ``support`` is where the moved volume is known, ``tissue`` where it matters. 1 = locally linear everywhere.
    """
    # Windows around the tissue see no further than this box.
    first, last = bounds(tissue[0, 0] > 0, reach(sigma))
    box: tuple = (..., *(slice(a, b) for a, b in zip(first, last)))
    fixed, moved, support, tissue = (v[box] for v in (fixed, moved, support, tissue))
    weight = blur(support, sigma).clamp_min(1e-3)

    def local(volume: torch.Tensor) -> torch.Tensor:
        return blur(volume * support, sigma) / weight

    mean_f, mean_m = local(fixed), local(moved)
    variance_f = (local(fixed * fixed) - mean_f**2).clamp_min(0) + FLAT
    variance_m = (local(moved * moved) - mean_m**2).clamp_min(0) + FLAT
    squared = (local(fixed * moved) - mean_f * mean_m) ** 2 / (variance_f * variance_m)
    weights = tissue * support
    # Tissue that has nothing opposite counts as unlike.
    return float((squared * weights).sum() / tissue.sum().clamp_min(1e-6))


def likeness(moving: Cube, fixed: Cube, fixed_to_moving: np.ndarray) -> Likeness:
    """The Likeness of two Cubes over the fixed tissue. fixed_to_moving: 4×4, RAS mm."""
    tissue, moved = fixed.tissue, moving.on(fixed.grid.moved(fixed_to_moving))
    alike = local_similarity(fixed.values, moved.values, moved.support, tissue)
    return Likeness(alike, float((moved.support * tissue).sum() / tissue.sum().clamp_min(1e-6)))


def global_likeness(moving: Cube, fixed: Cube, fixed_to_moving: np.ndarray) -> tuple[float, float]:
    """(correlation, information) of two Cubes over what is tissue of either and seen in both, see above."""
    moved = moving.on(fixed.grid.moved(fixed_to_moving))
    where = ((fixed.tissue + moved.tissue) > 0) & (fixed.support > 0.5) & (moved.support > 0.5)
    one, other = fixed.values[where], moved.values[where]
    if len(one) < BINS**2:
        return 0.0, 0.0
    correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1].nan_to_num().abs())
    return correlation, _information(one, other)


def _information(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mutual information of N intensities each, as a share of the smaller entropy."""
    bins = [(torch.argsort(torch.argsort(v)) * BINS // len(v)).long() for v in (one, other)]  # as many in each bin
    joint = torch.bincount(bins[0] * BINS + bins[1], minlength=BINS * BINS).view(BINS, BINS).double() / len(one)
    first, second = joint.sum(1), joint.sum(0)

    def entropy(p: torch.Tensor) -> float:
        return float(-(p * p.clamp_min(1e-12).log()).sum())

    return max(
        0.0, (entropy(first) + entropy(second) - entropy(joint)) / max(min(entropy(first), entropy(second)), 1e-6)
    )


def dice(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Dice of structures 1…count of two label arrays on one grid; NaN where neither holds the structure."""
    both = np.bincount(first[first == second], minlength=count + 1)[1 : count + 1]
    total = sum(np.bincount(a.ravel(), minlength=count + 1)[1 : count + 1] for a in (first, second))
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, 2 * both / total, np.nan)
