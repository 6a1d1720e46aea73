"""Local refinement of a transform by self-similarity, on finer and finer grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..networks.layers import blur
from ..spatial import geometry
from ..spatial.cube import Cube, bounds
from .descriptors import self_similarity
from .gauss_newton import Side, refine, side

#: Finer and finer cubes: voxel size relative to the model's, blur in voxels, iterations.
LEVELS = ((1.2, 1.0, 12), (0.6, 0.6, 6))

#: The largest multiple of a Gauss–Newton step.
BOLDEST = 4.0

#: What strain costs in the refinement, and the logarithmic strain that is free, see ``refine``: people differ by a
#: tenth, and without it every fourth pair of CTs, begun at the right place, ended with a scale below 0.75 or above
#: 1.33.
STIFFNESS, FREE = 10.0, 0.1

#: How many of the model's voxels the refinement looks beyond the fixed tissue.
MARGIN = 2

#: mm that a point near the rim moves at most in an iteration, as heads allow; in small cubes their longest edge divided
#: by the second. Chosen, untested.
LONGEST, PARTS = 15.0, 14

#: Points drawn in each volume's tissue per level.
POINTS = 10000


def polish(moving: Cube, fixed: Cube, world: np.ndarray, *, kind: str, seed: int) -> np.ndarray:
    """Refine a fixed → moving RAS transform (4×4) between two Cubes by their self-similarity on finer and finer grids.

    Better than intensities even where the contrast is the same: Dice 0.62 against 0.60 on T1 brains of two people.
    """
    for factor, sigma, iterations in LEVELS:
        world = polish_level(moving, fixed, world, kind, seed, factor, sigma, iterations)
    return world


def polish_level(
    moving: Cube,
    fixed: Cube,
    world: np.ndarray,
    kind: str,
    seed: int,
    factor: float,
    sigma: float,
    iterations: int,
    stiffness: float = STIFFNESS,
    count: int = POINTS,
) -> np.ndarray:
    """One level: the moving volume is resampled into the fixed cube by what is known, and the rest is found there.

    That way descriptors that depend on direction stay comparable, and each level samples the original voxels once.
    """
    sides, frame = described(moving, fixed, world, seed, factor, sigma, count)
    if not all(len(s.points) for s in sides):
        return world  # no tissue of the moving volume is anywhere near
    longest = min(LONGEST, float((fixed.spacing * fixed.grid.shape).max()) / PARTS)
    change = refine_described(
        sides,
        frame,
        world,
        np.eye(4)[None],
        kind=kind,
        iterations=iterations,
        longest=longest,
        boldest=BOLDEST,
        stiffness=stiffness,
    )
    return world @ frame @ change[0] @ np.linalg.inv(frame)


def described(
    moving: Cube, fixed: Cube, world: np.ndarray, seed: int, factor: float, sigma: float, count: int = POINTS
) -> tuple[list[Side], np.ndarray]:
    """((fixed, moving) Sides of self-similarity, the moving Cube laid on the fixed one by ``world``; 4×4 from the
    frame, mm from the middle of the box in which both lie, to RAS). factor, sigma: voxels in those of the model, blur
    in voxels; count: points drawn in each.
    """
    *cubes, to_ras = laid_on(moving, fixed, world, factor)
    spacing, shape = geometry.spacing(to_ras), cubes[0].grid.shape
    sides = []
    for cube in cubes:
        features = self_similarity(blur(cube.values, sigma))
        sides.append(side(features, cube.support, cube.tissue, spacing, count, seed))
    return sides, to_ras @ geometry.from_parts(np.diag(1 / spacing), (np.array(shape) - 1) / 2)


def laid_on(
    moving: Cube, fixed: Cube, world: np.ndarray, factor: float, margin: int = MARGIN
) -> tuple[Cube, Cube, np.ndarray]:
    """(the fixed Cube on a grid of ``factor`` times the model's voxels around its tissue, ``margin`` of the model's
    voxels wider, the moving Cube laid there by ``world``, the grid's 4×4 voxel → RAS matrix).
    """
    whole = fixed.grid.with_shape([int(round(n / factor)) for n in fixed.grid.shape])
    grid = whole.around(*_box(fixed, margin))
    return fixed.on(grid), moving.on(grid.moved(world)), grid.voxel_to_ras


def refine_described(
    sides: Sequence[Side],
    frame: np.ndarray,
    world: np.ndarray,
    changes: Sequence[np.ndarray] | np.ndarray,
    *,
    stiffness: float = STIFFNESS,
    **options: Any,
) -> np.ndarray:
    """``refine`` of B×4×4 changes in the frame of what was ``described``, where the moving volume was laid by
    ``world``.
    """
    return refine(
        sides[0],
        sides[1],
        changes,
        linear_fit=False,
        stiffness=stiffness,
        free=FREE,
        already=(world @ frame)[:3, :3],
        **options,
    )


def _box(cube: Cube, margin: int) -> np.ndarray:
    """Two corners (normalized x, y, z) of the box around a cube's tissue, ``margin`` voxels wider on each side."""
    inside = cube.tissue[0, 0] > 0.5
    corners = 2 * np.array(bounds(inside, margin)) / np.array(inside.shape) - 1
    return corners[:, ::-1]
