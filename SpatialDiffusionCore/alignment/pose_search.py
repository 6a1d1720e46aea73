"""Finding the pose among all rotations.

Transforms here map the fixed to the moving cube frame (gauss_newton.py), 4×4 float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..networks import layers
from ..spatial import geometry
from ..spatial.cube import Cube
from . import gauss_newton
from .gauss_newton import Side

#: Number of candidate poses that go into the diffusion.
CANDIDATES = 3

#: Share of the size within which two transforms (RMS over the tissue) lie in one basin.
BASIN = 0.1


class Search(NamedTuple):
    """One of the searches: the degrees by which its sixty starting rotations are turned, and what it compares."""

    turn: float
    edges: bool


#: The searches, each from starts and points of its own. A second turn of the starts fills the gaps between those of the
#: first (44° at most, 35° then); edges are compared whatever the contrast.
SEARCHES = (Search(0.0, False), Search(36.0, False), Search(18.0, True))

#: On what is searched: voxel size relative to the model's, blur in voxels, points drawn in each volume. No measurement
#: is kept of this and of what follows.
LEVEL = (3.0, 0.7, 1500)

#: Iterations of the refinement from each start, and mm that a point near the rim moves at most in one: starts may be
#: far off.
ITERATIONS, LONGEST = 6, 25.0

#: Ends of a search that are refined with scale, too.
ENDS = 4 * CANDIDATES

#: Fewest voxels of a searched cube along an axis.
LEAST_SIZE = 12

#: mm (RMS) between transforms that count as two, see ``distinct``.
APART = 15.0

#: Axis about which the starts of a search are turned: none of the icosahedron's.
TURN_AXIS = (0.36, 0.48, 0.8)


@dataclass(frozen=True)
class Pose:
    """A pose that was found: the transform, its score relative to the best of its search, at most 1, and for which
    searches its basin is the best.
    """

    matrix: np.ndarray
    score: float
    firsts: frozenset[int]


def coarse(cube: Cube, factor: float, sigma: float, count: int, seed: int, edges: bool = False) -> Side:
    """A Side of a cube at 1/factor of its resolution: its intensities, or how strong its edges are.

    sigma: of the blur after that, voxels. count: points drawn in the tissue, the same ones for the same seed.
    """
    size = [max(LEAST_SIZE, int(round(n / factor))) for n in cube.grid.shape]
    values = cube.values
    if edges:
        values = edge_strength(layers.blur(values, 1.0)) * cube.support
    values = layers.blur(F.interpolate(values, size=size, mode="area"), sigma)
    support, tissue = (F.interpolate(v, size=size, mode="area") for v in (cube.support, cube.tissue))
    if tissue.max() <= 0.5:  # thin structures vanish when averaged
        tissue = tissue / tissue.max().clamp_min(1e-6)
    spacing = cube.spacing * np.array(cube.grid.shape) / np.array(size)
    return gauss_newton.side(values, support, tissue, spacing, count, seed)


def edge_strength(values: torch.Tensor) -> torch.Tensor:
    """Length of the intensities' gradient, B×1×D×H×W like the values, per voxel; it does not depend on the sign of
    contrast.
    """
    squared = torch.zeros_like(values)
    for axis in (2, 3, 4):
        squared += torch.gradient(values, dim=axis)[0].square()
    return squared.sqrt()


def poses(moving: Cube, fixed: Cube, seed: int, keep: int = CANDIDATES) -> list[np.ndarray]:
    """The most promising poses, best first."""
    return [pose.matrix for pose in search_poses(moving, fixed, seed)[:keep]]


def search_poses(moving: Cube, fixed: Cube, seed: int, searches: Sequence[Search] = SEARCHES) -> list[Pose]:
    """What some searches find, best first, poses in one basin as one; none where a volume shows no tissue.

    In each, sixty rotations about the tissue's centers and the headers' own pose are refined rigidly on cubes of about
    10 mm, in one batch, and the best of them with scale.
    """
    found = []
    factor, sigma, count = LEVEL
    for number, search in enumerate(searches):
        a, b = (coarse(cube, factor, sigma, count, seed + number, search.edges) for cube in (fixed, moving))
        if len(a.points) and len(b.points):
            found += [(matrix, score, number) for matrix, score in _one_search(a, b, moving, fixed, search)]
    return _basins(found, fixed)


def _one_search(a: Side, b: Side, moving: Cube, fixed: Cube, search: Search) -> list:
    """[(matrix, score relative to the best)] of the twelve best ends of one search."""
    turn = geometry.rotation_about(TURN_AXIS, np.radians(search.turn))
    center_a, center_b = a.points.mean(0).cpu().double().numpy(), b.points.mean(0).cpu().double().numpy()
    starts = [geometry.about(r @ turn, center_a, center_b - center_a) for r in geometry.rotation_group()]
    starts.append(np.linalg.inv(moving.frame) @ fixed.frame)
    matrices = gauss_newton.refine(a, b, starts, kind="rigid", iterations=ITERATIONS, longest=LONGEST)
    first = np.argsort(-_score(a, b, matrices), kind="stable")[:ENDS]
    matrices = gauss_newton.refine(a, b, matrices[first], kind="similarity", iterations=ITERATIONS)
    score = _score(a, b, matrices)
    best = max(score.max(), 1e-6)
    return [(matrices[i], float(score[i] / best)) for i in np.argsort(-score, kind="stable")]


def _basins(found: list, fixed: Cube) -> list[Pose]:
    """The poses found by all searches, those in one basin as one, first those that most searches put first."""
    tissue = tissue_of(fixed)
    result: list[Pose] = []
    for matrix, score, number in sorted(found, key=lambda entry: -entry[1]):
        here = frozenset({number}) if score >= 1.0 else frozenset()
        for index, pose in enumerate(result):
            if geometry.displacement_rms(matrix, pose.matrix, *tissue) <= BASIN * size_of(tissue):
                result[index] = replace(pose, firsts=pose.firsts | here)
                break
        else:
            result.append(Pose(matrix, score, here))
    return sorted(result, key=lambda pose: (-len(pose.firsts), -pose.score))


def tissue_of(cube: Cube) -> tuple:
    """(mean (3), covariance (3×3)) of a cube's tissue in its frame, mm."""
    to_frame = np.linalg.inv(cube.frame)
    prepared = cube.prepared
    mean = geometry.transform_points(to_frame, prepared.tissue_center[None])[0]
    return mean, to_frame[:3, :3] @ prepared.tissue_covariance @ to_frame[:3, :3].T


def size_of(tissue: tuple) -> float:
    """Twice the RMS radius of a tissue, (mean, covariance)."""
    return float(2 * np.sqrt(np.trace(tissue[1])))


def _score(a: Side, b: Side, matrices: np.ndarray) -> np.ndarray:
    """Correlation, with less trust where little overlaps."""
    similarity, overlap = gauss_newton.correlation(a, b, matrices)
    return np.nan_to_num(similarity * np.sqrt(overlap.clip(0, 1)), nan=-1.0)


def distinct(a: Side, matrices: np.ndarray, score: np.ndarray, keep: int, apart: float = APART) -> list[int]:
    """Indices of the best-scored transforms that lie more than ``apart`` mm (RMS) from each other."""
    points = a.points.cpu().double().numpy()
    mean, covariance = points.mean(0), np.cov(points.T, bias=True)
    chosen: list[int] = []
    for index in np.argsort(-score, kind="stable"):
        if all(geometry.displacement_rms(matrices[index], matrices[c], mean, covariance) > apart for c in chosen):
            chosen.append(int(index))
        if len(chosen) == keep:
            break
    return chosen
