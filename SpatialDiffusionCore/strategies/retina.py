"""Scans of eyes: any turn about the depth axis, a lateral shift, tilts of a few degrees; see alignment/front_maps.py."""

from __future__ import annotations

from typing import List, Optional, Sequence

import numpy as np

from ..alignment import front_maps, pose_search
from ..alignment.similarity import similarity
from ..spatial import geometry
from ..spatial.cube import Cube
from .base import Limits, Over, Strategy


class Retina(Strategy):
    """OCT and OCTA: seen from the front first, then in depth."""

    any_rotation = False
    any_size = False

    #: Right answers of phantom pairs spread by less than 0.036 mm, wrong ones by 0.10 mm and more.
    limits = Limits(good=0.05, fair=0.08, convincing=0.0)

    def poses(self, moving: Cube, fixed: Cube, seed: int) -> List[np.ndarray]:
        return front_maps.poses(moving, fixed, pose_search.CANDIDATES)

    def rank(self, moving: Cube, fixed: Cube, matrices: Sequence[np.ndarray]) -> pose_search.Ranking:
        # As they are: unlike the correlation of blurred layers it tells a scan from one that is shifted by a few lines.
        worlds = [moving.frame @ np.asarray(m, float) @ np.linalg.inv(fixed.frame) for m in matrices]
        scores = np.array([similarity(moving, fixed, world)[0] for world in worlds])
        return pose_search.Ranking(scores, int(scores.argmax()))

    def refine(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int, enough: float) -> np.ndarray:
        found = front_maps.refine(moving, fixed, world, seed=seed)
        return geometry.project(found, kind, fixed.prepared.tissue_center, fixed.prepared.tissue_covariance)

    def is_better(
        self, moving: Cube, fixed: Cube, before: np.ndarray, after: np.ndarray, seed: int, over: Over
    ) -> bool:
        first, second = front_maps.agreement(moving, fixed, [before, after], seed=seed)
        return second >= first

    def spread(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int) -> Optional[float]:
        return front_maps.spread(moving, fixed, world, seed=seed)
