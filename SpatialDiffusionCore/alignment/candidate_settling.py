"""Many candidate transforms refined coarsely, the best of them finer, and the likest kept."""

from __future__ import annotations

import numpy as np

from . import block_matching, self_similarity
from .similarity import likeness

#: How many of the best are also refined by blocks that vote (blocks.py).
VOTED = 2

#: The two rounds of ``settle``: kind of transform (at most), and the grid (as in polish.LEVELS). How many enter the second.
ROUNDS, SECOND = (("similarity", (2.0, 0.8, 10)), ("affine", (1.2, 1.0, 10))), 6


def settle(moving, fixed, worlds, kind: str, seed: int, voted: int = VOTED, enough: float = np.inf):
    """Refine every candidate (fixed → moving RAS) by self-similarity and keep the likest; yields (likeness, world).

    Coarsely first, then the best of them finer, and the ``voted`` best of these by blocks that vote. Each that leads the first
    round is refined finer at once, and is the answer if it is ``enough`` alike. The last pair yielded is the answer. In tests on
    corrupted heads a right candidate, where there was one, nearly always came out on top, which correlation does not achieve.
    """

    def refined(world, largest, level):
        world = self_similarity.polish_level(moving, fixed, world, largest if kind == "affine" else kind, seed, *level)
        return likeness(moving, fixed, world), world

    def alike(pair):
        return pair[0]

    first, finer = [], {}
    for index, world in enumerate(worlds):
        first.append(refined(world, *ROUNDS[0]))
        yield max(first, key=alike)
        if enough < np.inf and max(first, key=alike) is first[index]:
            finer[index] = refined(first[index][1], *ROUNDS[1])
            if finer[index][0] >= enough:
                yield finer[index]
                return
    second = []
    for index in sorted(range(len(first)), key=lambda i: -first[i][0])[:SECOND]:
        second.append(finer.get(index) or refined(first[index][1], *ROUNDS[1]))
        yield max(second, key=alike)
    for _, world in sorted(second, key=alike, reverse=True)[:voted]:
        world = block_matching.refine(moving, fixed, world, kind)
        second.append((likeness(moving, fixed, world), world))
        yield max(second, key=alike)
