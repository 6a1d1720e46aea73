"""What differs by anatomy in the course of a registration, and what volumes of any kind get.

A strategy is stateless. It is handed two Cubes and fixed → moving transforms: 4×4 matrices in RAS mm ("world"), or
between the cubes' frames (gauss_newton.py), as each method says.
"""

from __future__ import annotations

import numpy as np

from ..alignment import pose_search, repetition, self_similarity
from ..alignment.pair import Pair
from ..alignment.pose_search import Pose
from ..spatial import geometry
from ..spatial.cube import Cube

#: How candidates are compared: kind of transform (at most), and the grid, blur and iterations of their refinement (see
#: self_similarity.LEVELS).
COMPARISON = ("similarity", (2.0, 0.8, 10))


class Strategy:
    """Volumes of any kind, and what the others change."""

    #: Under which name answers are calibrated (pipeline/confidence.json).
    name = "any"

    #: Whether any rotation is possible between two volumes.
    any_rotation = True

    #: Whether volumes are worked on at one size (pipeline/work_scale.py), because nothing is known of theirs.
    any_size = True

    #: Whether blocks that vote may refine: both volumes are of one contrast. Between contrasts self-similarity is the
    #: better judge: T1 and FLAIR of one person end 2.6 mm off by blocks instead of 0.6.
    blocks_vote = False

    #: Whether volumes are also compared as in a mirror, because no template tells left from right.
    looks_in_mirror = True

    #: Whether all rotations are tried at every shift where an answer is doubtful (alignment/wide_search.py).
    searches_widely = True

    def poses(self, moving: Cube, fixed: Cube, seed: int) -> list[Pose]:
        """The most promising poses, best first."""
        return pose_search.search_poses(moving, fixed, seed)

    def compared(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int) -> np.ndarray:
        """A candidate (world) after the coarse refinement with which it is compared."""
        largest, level = COMPARISON
        world = geometry.project(world, kind, fixed.prepared.tissue_center, fixed.prepared.tissue_covariance)
        return self_similarity.polish_level(moving, fixed, world, largest if kind == "affine" else kind, seed, *level)

    def rank(self, pair: Pair, world: np.ndarray) -> float:
        """What candidates are compared by, the larger the better."""
        return pair.rank(world)

    def refine(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int, enough: float) -> np.ndarray:
        """A world transform, refined; repeated, at most three times, while it moves the tissue by more than ``enough``
        mm.
        """
        tissue = fixed.prepared.tissue_center, fixed.prepared.tissue_covariance
        for _ in range(4):
            before, world = world, self_similarity.polish(moving, fixed, world, kind=kind, seed=seed)
            if geometry.displacement_rms(before, world, *tissue) <= enough:
                break
        return world

    def is_better(self, pair: Pair, before: np.ndarray, after: np.ndarray, seed: int) -> bool:
        """Whether a refinement may stand: it makes the volumes no less alike."""
        return pair.alike(after) >= pair.alike(before)

    def spread(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int) -> float | None:
        """mm (RMS) between repeated refinements; None where the volumes do not meet."""
        return repetition.spread(moving, fixed, world, kind, seed)
