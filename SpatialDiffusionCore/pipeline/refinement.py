"""Local refinement of an answer, undone where it makes the volumes less alike."""

from __future__ import annotations

import numpy as np

from ..alignment.pair import Pair
from ..spatial import geometry
from .settings import Settings


def refined(pair: Pair, world: np.ndarray, options: Settings, enough: float = 5.0) -> tuple:
    """(transform, whether it changed): local refinement, undone where it makes the volumes less alike.

    Repeated while it still moves the tissue by more than ``enough`` mm (RMS).
    """
    moving, fixed, strategy, seed = pair.moving, pair.fixed, options.strategy, options.seed
    # The refinement only adds a transform of its kind, so what it starts from must be of that kind, too.
    start = geometry.project(world, options.transform, *pair.tissue)
    found = strategy.refine(moving, fixed, start, options.transform, seed, enough)
    if strategy.is_better(moving, fixed, start, found, seed, pair.over):
        return found, True
    return start, False
