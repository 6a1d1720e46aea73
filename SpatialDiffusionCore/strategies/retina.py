"""Scans of eyes: any turn about depth, a lateral shift, tilts of a few degrees; see alignment/front_maps.py."""

from __future__ import annotations

import numpy as np

from ..alignment import front_maps, pose_search
from ..alignment.pair import Pair
from ..alignment.pose_search import Pose
from ..spatial import geometry
from ..spatial.cube import Cube
from .base import Strategy

#: Devices know their scale, and eyes differ little: a logarithmic strain beyond the first is believed only where it
#: makes the maps correlate by more than the second better. Along a few lines far apart a raster says little about
#: scale: a real eye was squeezed to 84 %. With 0.05 and 0.1 12 of 48 phantom pairs, whose scales differ by up to 0.15,
#: ended 30 to 110 µm off.
STRAIN, EVIDENT = 0.12, 0.05


class Retina(Strategy):
    """OCT and OCTA: seen from the front first, then in depth."""

    name = "retina"
    any_rotation = False
    any_size = False
    looks_in_mirror = False
    searches_widely = False

    def poses(self, moving: Cube, fixed: Cube, seed: int) -> list[Pose]:
        found = front_maps.poses(moving, fixed, pose_search.CANDIDATES)
        return [Pose(matrix, 1.0, frozenset({0} if number == 0 else ())) for number, matrix in enumerate(found)]

    def compared(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int) -> np.ndarray:
        # As they are: unlike the correlation of blurred layers, their similarity tells a scan from one that is shifted
        # by a few of its lines.
        return geometry.project(world, kind, fixed.prepared.tissue_center, fixed.prepared.tissue_covariance)

    def rank(self, pair: Pair, world: np.ndarray) -> float:
        return pair.over(world).similarity

    def refine(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int, enough: float) -> np.ndarray:
        tissue = fixed.prepared.tissue_center, fixed.prepared.tissue_covariance
        found = geometry.project(front_maps.refine(moving, fixed, world, seed=seed), kind, *tissue)
        usual = geometry.limit_strain(found, STRAIN, tissue[0])
        if np.allclose(usual, found):
            return found
        usual = geometry.project(front_maps.shifted(moving, fixed, usual, seed=seed), kind, *tissue)
        free, held = front_maps.agreement(moving, fixed, [found, usual], seed=seed)
        return found if free > held + EVIDENT else usual

    def is_better(self, pair: Pair, before: np.ndarray, after: np.ndarray, seed: int) -> bool:
        first, second = front_maps.agreement(pair.moving, pair.fixed, [before, after], seed=seed)
        return bool(second >= first)

    def spread(self, moving: Cube, fixed: Cube, world: np.ndarray, kind: str, seed: int) -> float | None:
        return front_maps.spread(moving, fixed, world, seed=seed)
