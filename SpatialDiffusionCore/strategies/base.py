"""What differs by anatomy in the course of a registration, and what volumes of any kind get.

A strategy is stateless. It is handed two Cubes and fixed → moving transforms: 4×4 matrices in RAS mm ("world"), or
between the cubes' frames (gauss_newton.py), as each method says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence

import numpy as np

from ..alignment import pose_search, repetition, self_similarity
from ..spatial import geometry
from ..spatial.cube import Cube

#: How alike a world transform makes the volumes over the fixed tissue: (similarity, overlap).
Over = Callable[[np.ndarray], tuple]


@dataclass(frozen=True)
class Limits:
    """What an answer must reach. good, fair: mm (RMS) up to which repeated runs may disagree. convincing: similarity below
    which the search goes on and an answer is never good."""

    good: float
    fair: float
    convincing: float


class Strategy:
    """Volumes of any kind, and what the others change."""

    #: Whether any rotation is possible between two volumes, so that the search may go on where the answer is doubtful.
    any_rotation = True

    #: Whether volumes are worked on at one size (pipeline/work_scale.py), because nothing is known of theirs.
    any_size = True

    #: Whether blocks that vote may refine: both volumes are of one contrast. Between contrasts self-similarity is the
    #: better judge: T1 and FLAIR of one person end 2.6 mm off by blocks instead of 0.6.
    blocks_vote = False

    #: In 214 benchmark registrations of heads and brains, between modalities, too, 178 of 189 right answers spread by less
    #: than 1.2 mm, and the 25 wrong ones by 1.4 to 6.8; necks in CT, where people differ more, by 1.1 to 4.8 where right.
    #: Wrong answers with small spreads had similarities of 0.26 to 0.28, right ones between heads of two people 0.29 to
    #: 0.41 over whole heads, 0.36 to 0.54 in focus.
    limits = Limits(good=1.2, fair=5.0, convincing=0.3)

    def poses(self, moving: Cube, fixed: Cube, seed: int) -> List[np.ndarray]:
        """The most promising poses between the cubes' frames, best first."""
        return pose_search.poses(moving, fixed, seed)

    def rank(self, moving: Cube, fixed: Cube, matrices: Sequence[np.ndarray]) -> pose_search.Ranking:
        """Which of some transforms between the cubes' frames is best."""
        return pose_search.rank(moving, fixed, matrices)

    def refine(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int, enough: float) -> np.ndarray:
        """A world transform, refined; repeated, at most three times, while it moves the tissue by more than ``enough`` mm."""
        tissue = fixed.prepared.tissue_center, fixed.prepared.tissue_covariance
        for _ in range(4):
            before, world = world, self_similarity.polish(moving, fixed, world, kind=kind, seed=seed)
            if geometry.displacement_rms(before, world, *tissue) <= enough:
                break
        return world

    def is_better(
        self, moving: Cube, fixed: Cube, before: np.ndarray, after: np.ndarray, seed: int, over: Over
    ) -> bool:
        """Whether a refinement may stand: it makes the volumes no less alike."""
        return over(after)[0] >= over(before)[0]

    def spread(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int) -> Optional[float]:
        """mm (RMS) between repeated refinements; None where the volumes do not meet."""
        return repetition.spread(moving, fixed, world, kind, seed)
