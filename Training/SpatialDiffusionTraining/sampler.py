"""The endless stream of training rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Sampler:
    """An endless stream of rows: the n-th draw is a pure function of (seed, n), so a position is one number.

    groups: lists of rows (one per data set) with one weight each; a group gets its weight's share of the draws
    whatever its size. A group is gone through again and again in ever new orders, so every row comes equally
    often and nothing needs an epoch; blocks of draws mix the groups. Processes take their own parts of every
    global batch: see `batch`.
    """

    def __init__(self, groups: Sequence[Sequence[int]], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        rows = [list(g) for g in groups]
        if not rows or any(not g for g in rows):
            raise ValueError("expected at least one row in every group")
        share = np.asarray(weights if weights is not None else [1.0] * len(rows), float)
        if len(share) != len(rows) or (share <= 0).any():
            raise ValueError(f"expected {len(rows)} positive weights, got {share.tolist()}")
        self.groups, self.seed = rows, int(seed)
        self.length = max(64, sum(len(g) for g in rows))
        exact = share / share.sum() * self.length
        counts = np.maximum(1, np.floor(exact).astype(int))
        self.length = int(counts.sum())
        self.counts = counts
        self._block: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def _rows_of_block(self, number: int) -> np.ndarray:
        if self._block[0] != number:
            rows: list[int] = []
            for index, (group, count) in enumerate(zip(self.groups, self.counts)):
                place = number * int(count)
                while place < (number + 1) * int(count):
                    turn, offset = divmod(place, len(group))
                    order = np.random.default_rng([self.seed, index, turn]).permutation(group)
                    rows.extend(order[offset : offset + (number + 1) * int(count) - place])
                    place += len(order) - offset
            self._block = (number, np.random.default_rng([self.seed, number]).permutation(np.array(rows)))
        return self._block[1]

    def draw(self, position: int, count: int) -> list[int]:
        """Rows of the draws position … position + count - 1."""
        out: list[int] = []
        while len(out) < count:
            block, offset = divmod(position + len(out), self.length)
            out += self._rows_of_block(block)[offset : offset + count - len(out)].tolist()
        return out

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> list[int]:
        """The rows of this process in global batch `step` of world · size draws."""
        rows = self.draw(step * size * world, size * world)
        return rows[rank * size : (rank + 1) * size]
