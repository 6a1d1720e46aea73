"""How alike two volumes are under a transform, and how well two label maps overlap."""

from __future__ import annotations

import numpy as np

from ..networks.layers import blur, reach
from ..spatial.cube import bounds


def local_similarity(fixed, moved, support, tissue, sigma: float = 2.0) -> float:
    """Mean squared local correlation (Gaussian windows, sigma in voxels) of 1×1×D×H×W volumes over the tissue.

    ``support`` is where the moved volume is known, ``tissue`` where it matters. 1 = locally linear everywhere.
    """
    # Windows around the tissue see no further than this box.
    first, last = bounds(tissue[0, 0] > 0, reach(sigma))
    box = (..., *(slice(a, b) for a, b in zip(first, last)))
    fixed, moved, support, tissue = (v[box] for v in (fixed, moved, support, tissue))
    weight = blur(support, sigma).clamp_min(1e-3)

    def local(volume):
        return blur(volume * support, sigma) / weight

    mean_f, mean_m = local(fixed), local(moved)
    variance_f = (local(fixed * fixed) - mean_f**2).clamp_min(0) + 1e-4
    variance_m = (local(moved * moved) - mean_m**2).clamp_min(0) + 1e-4
    squared = (local(fixed * moved) - mean_f * mean_m) ** 2 / (variance_f * variance_m)
    weights = tissue * support
    # Tissue that has nothing opposite counts as unlike.
    return float((squared * weights).sum() / tissue.sum().clamp_min(1e-6))


def similarity(moving, fixed, fixed_to_moving):
    """(local similarity of two Cubes over the fixed tissue, share of that inside the moving field of view).

    fixed_to_moving: 4×4, RAS mm.
    """
    tissue, moved = fixed.tissue, moving.on(fixed.grid.moved(fixed_to_moving))
    alike = local_similarity(fixed.values, moved.values, moved.support, tissue)
    return alike, float((moved.support * tissue).sum() / tissue.sum().clamp_min(1e-6))


def dice(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Dice of structures 1…count of two label arrays on one grid; NaN where neither holds the structure."""
    both = np.bincount(first[first == second], minlength=count + 1)[1 : count + 1]
    total = sum(np.bincount(a.ravel(), minlength=count + 1)[1 : count + 1] for a in (first, second))
    with np.errstate(invalid="ignore"):
        return np.where(total > 0, 2 * both / total, np.nan)


def likeness(moving, fixed, world) -> float:
    """How alike two cubes are where they overlap under a fixed → moving RAS matrix; small overlaps are trusted less."""
    alike, overlap = similarity(moving, fixed, world)
    return alike / max(overlap, 0.05) ** 0.5
