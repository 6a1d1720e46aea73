"""Local refinement of an answer, undone where it makes the volumes less alike."""

from __future__ import annotations

import numpy as np

from ..options import Options
from ..spatial import geometry
from .pair import Pair


def refined(pair: Pair, world: np.ndarray, options: Options, enough: float = 5.0) -> tuple:
    """(transform, whether it changed): local refinement, undone where it makes the volumes less alike.

    Repeated, at most three times more, while it still moves the tissue by more than ``enough`` mm (RMS).
    """
    from ..alignment.self_similarity import polish
    from ..strategies import retina

    moving, fixed = pair.moving, pair.fixed
    # The refinement only adds a transform of its kind, so what it starts from must be of that kind, too.
    start = found = geometry.project(world, options.transform, *pair.tissue)
    if options.rotations == "depth":
        found = geometry.project(
            retina.refine(moving, fixed, start, seed=options.seed), options.transform, *pair.tissue
        )
        before, after = retina.agreement(moving, fixed, [start, found], seed=options.seed)
        return (found, True) if after >= before else (start, False)
    for _ in range(4):
        before, found = found, polish(moving, fixed, found, kind=options.transform, seed=options.seed)
        if geometry.displacement_rms(before, found, *pair.tissue) <= enough:
            break
    better = pair.over(found)[0] >= pair.over(start)[0]
    return (found, True) if better else (start, False)
