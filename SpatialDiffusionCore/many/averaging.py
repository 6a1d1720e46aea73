"""Transforms of many volumes to one space from transforms of pairs: robust, and the same in any order.

Volumes are numbered 0 … N − 1. A pair (i, j) has a 4×4 transform T of points of i to those of j, RAS mm. Wanted are
X_i, volume → common space, with X_j T = X_i. D = X_j T X_i⁻¹ is what a pair disagrees by, as a map of the common space;
its logarithm is made small over all pairs, which is a system of equations with the Laplacian of the graph of pairs
(Govindu, CVPR 2004: motion averaging), weighted so that pairs that contradict the others count for nothing
(Geman–McClure).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..errors import InputError
from ..spatial import geometry

#: A pair contradicts the others where it disagrees by more than this part of the size of the tissue (what DESIGN calls
#: wrong), and by so many times the median disagreement.
WRONG, TIMES = 0.03, 4.0

#: Changes of all transforms below this, relative to the size, end the iteration; steps at most, while weights change
#: and after.
CONVERGED, REWEIGHTED, ROUNDS = 1e-11, 40, 60


@dataclass(frozen=True)
class Cloud:
    """A volume's tissue as a cloud of points: mean (3, RAS mm) and covariance (3×3, mm²)."""

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def size(self) -> float:
        """Twice the RMS radius, mm."""
        return 2 * float(np.sqrt(np.trace(self.covariance)))

    def moved(self, matrix: np.ndarray) -> Cloud:
        """The cloud under a 4×4 matrix."""
        linear = matrix[:3, :3]
        return Cloud(geometry.transform_points(matrix, self.mean[None])[0], linear @ self.covariance @ linear.T)

    def distance(self, a: np.ndarray, b: np.ndarray) -> float:
        """RMS distance between its images under two 4×4 matrices, mm."""
        return geometry.displacement_rms(a, b, self.mean, self.covariance)


@dataclass(frozen=True)
class Consensus:
    """What pairs agree on.

    matrices: N×4×4, volume → common space. disagreement: {pair: mm RMS over the tissue by which it misses that};
    dropped: the pairs that contradict the others.
    """

    matrices: np.ndarray
    disagreement: dict
    dropped: tuple


def cycle_errors(pairs: Mapping, clouds: Sequence[Cloud]) -> dict:
    """{(i, j, k): mm} by which going around each triangle of pairs misses the start (RMS over the tissue of i)."""
    errors = {}
    known = set(pairs)
    neighbors: dict = {}
    for i, j in known:
        neighbors.setdefault(i, set()).add(j)
        neighbors.setdefault(j, set()).add(i)
    for i, j in sorted(known):
        for k in sorted(neighbors[i] & neighbors[j]):
            if k > max(i, j):
                around = way(pairs, k, i) @ way(pairs, j, k) @ way(pairs, i, j)
                errors[tuple(sorted((i, j, k)))] = clouds[i].distance(around, np.eye(4))
    return errors


def way(pairs: Mapping, i: int, j: int) -> np.ndarray:
    """i's points → j's points by a pair or its inverse, 4×4."""
    return pairs[i, j] if (i, j) in pairs else geometry.inverse(pairs[j, i])


def by_volume(errors: Mapping, count: int) -> np.ndarray:
    """Each volume's cycle error: the median over its triangles, mm; NaN where it is in none."""
    found = [[error for triangle, error in errors.items() if index in triangle] for index in range(count)]
    return np.array([np.median(mine) if mine else np.nan for mine in found])


def _suspicion(pairs: Mapping, clouds: Sequence[Cloud], trust: Mapping) -> dict:
    """{pair: how little it is to be believed before all are weighed together}: median cycle error and small trust."""
    errors = cycle_errors(pairs, clouds)
    size = float(np.median([cloud.size for cloud in clouds]))
    told = {}
    for pair in pairs:
        mine = [error for triangle, error in errors.items() if set(pair) <= set(triangle)]
        # Where most triangles of a right pair are right the median is; where there are two, the better one.
        cycles = float(np.median(mine)) if len(mine) > 3 else min(mine, default=0.0)
        told[pair] = cycles / size + 0.1 * (1 - trust.get(pair, 1.0))
    return told


def connected(pairs, count: int) -> list:
    """The connected parts of a graph of pairs, each a sorted list of volumes, the largest first."""
    parts = {index: {index} for index in range(count)}
    for i, j in pairs:
        if parts[i] is not parts[j]:
            joined = parts[i] | parts[j]
            for index in joined:
                parts[index] = joined
    unique = {id(part): sorted(part) for part in parts.values()}
    return sorted(unique.values(), key=lambda part: (-len(part), part))


def _along_best_pairs(pairs: Mapping, suspicion: Mapping, count: int) -> np.ndarray:
    """First X: along the tree of the least suspicious pairs (Prim)."""
    matrices: list = [None] * count
    first = min(suspicion, key=lambda pair: (suspicion[pair], pair))[0]
    matrices[first] = np.eye(4)
    for _ in range(count - 1):
        open_pairs = [pair for pair in pairs if (matrices[pair[0]] is None) != (matrices[pair[1]] is None)]
        i, j = min(open_pairs, key=lambda pair: (suspicion[pair], pair))
        if matrices[i] is None:
            matrices[i] = matrices[j] @ pairs[i, j]
        else:
            matrices[j] = matrices[i] @ geometry.inverse(pairs[i, j])
    return np.array(matrices)


def _disagreements(pairs: Mapping, matrices: np.ndarray, clouds: Sequence[Cloud]) -> dict:
    """{pair: mm}: RMS over both volumes' tissue between where a pair and where the common space lay it."""
    told = {}
    for (i, j), matrix in pairs.items():
        back = geometry.inverse(matrices[j]) @ matrices[i]
        ahead = clouds[i].distance(matrix, back)
        behind = clouds[j].distance(geometry.inverse(matrix), geometry.inverse(back))
        told[i, j] = float(np.hypot(ahead, behind) / np.sqrt(2))
    return told


def _logs(matrices: np.ndarray) -> np.ndarray:
    """Matrix logarithms of B×4×4 affines, by their power series where that is short."""
    rest = matrices - np.eye(4)
    near = np.linalg.norm(rest[:, :3, :3], axis=(1, 2)) < 0.4
    result, power = np.zeros_like(rest), rest * near[:, None, None]
    for order in range(1, 40):  # 0.4 to the power of 40 is 1e-16
        result += power / order * (1 if order % 2 else -1)
        power = power @ rest
    for index in np.flatnonzero(~near):
        result[index] = geometry.log(matrices[index])
    return result


def _balanced(pairs: Mapping, matrices: np.ndarray, weights: Mapping, size: float, rounds: int) -> np.ndarray:
    """The weighted least squares X for fixed weights, from X near it."""
    count, order = len(matrices), [pair for pair in sorted(pairs) if weights[pair] > 0]
    incidence = np.zeros((len(order), count))
    for row, (i, j) in enumerate(order):
        incidence[row, i], incidence[row, j] = 1.0, -1.0
    strength = np.array([weights[pair] for pair in order])
    laplacian = incidence.T @ (strength[:, None] * incidence) + np.ones((count, count)) / count
    ahead = np.array([pairs[pair] for pair in order])
    heads, tails = (np.array([pair[side] for pair in order]) for side in (0, 1))
    for _ in range(rounds):
        logs = _logs(matrices[tails] @ ahead @ np.linalg.inv(matrices[heads]))
        right = incidence.T @ (strength[:, None] * logs.reshape(len(order), 16))
        change = np.linalg.solve(laplacian, right).reshape(count, 4, 4)
        matrices = np.array([geometry.exp(step) @ one for step, one in zip(change, matrices)])
        if max(np.abs(change[:, :3, :3]).max(), np.abs(change[:, :3, 3]).max() / size) < CONVERGED:
            break
    return matrices


def consensus(pairs: Mapping, clouds: Sequence[Cloud], trust: Mapping | None = None) -> Consensus:
    """The transforms that pairs agree on, pairs that contradict the others found and left out.

    pairs: {(i, j): 4×4, i's points → j's}; trust: {pair: 0…1}, how far it may be believed (default: 1). The result is
    that in which the mean of the logarithms of X is 0 (see ``unbiased``). Raises InputError where pairs do not connect
    all volumes.
    """
    count = len(clouds)
    parts = connected(pairs, count)
    if len(parts) > 1:
        raise InputError(f"The pairs do not connect all volumes: {len(parts)} parts; register pairs across them.")
    trust = trust or {}
    suspicion = _suspicion(pairs, clouds, trust)
    matrices = _along_best_pairs(pairs, suspicion, count)
    size = float(np.median([cloud.size for cloud in clouds]))
    dropped: set = set()
    for _ in range(REWEIGHTED):
        told = _disagreements(pairs, matrices, clouds)
        usual = float(np.median([told[pair] for pair in told if pair not in dropped] or [0.0]))
        scale = max(2 * usual, 1e-3 * size)
        weights = {
            pair: (trust.get(pair, 1.0) + 1e-3) * (0.0 if far > 4 * scale else (scale**2 / (scale**2 + far**2)) ** 2)
            for pair, far in told.items()
        }
        _keep_connected(weights, told, count)
        before = matrices
        matrices = _balanced(pairs, matrices, weights, size, 2)
        known, dropped = dropped, {pair for pair, far in told.items() if far > max(WRONG * size, TIMES * usual)}
        moved = max(cloud.distance(a, b) for cloud, a, b in zip(clouds, before, matrices))
        if known == dropped and moved < 1e-4 * size:
            break
    kept = {pair: matrix for pair, matrix in pairs.items() if pair not in dropped}
    even = {pair: trust.get(pair, 1.0) + 1e-3 for pair in pairs if pair in kept}
    even.update({pair: 0.0 for pair in dropped})
    _keep_connected(even, told, count)
    matrices = _balanced(pairs, matrices, even, size, ROUNDS)
    told = _disagreements(pairs, matrices, clouds)
    return Consensus(unbiased(matrices, clouds), told, tuple(sorted(dropped)))


def _keep_connected(weights: dict, told: Mapping, count: int) -> None:
    """Give the least bad pair a little weight wherever a volume would hang on none."""
    while len(parts := connected([pair for pair, weight in weights.items() if weight > 0], count)) > 1:
        inside = set(parts[0])
        across = [pair for pair in weights if (pair[0] in inside) != (pair[1] in inside)]
        weights[min(across, key=lambda pair: (told[pair], pair))] = 1e-3


def unbiased(matrices: np.ndarray, clouds: Sequence[Cloud]) -> np.ndarray:
    """The same seen from the space in the middle: there the mean of all transforms is the identity.

    Of two volumes that is halfway. Where headers are turned so far that the logarithms' mean is not defined, the middle
    is that of the least squares: the mean rotation (nearest to the sum) and the mean of where centers and axes go.
    """
    try:
        middle = geometry.mean(matrices, iterations=100)
        turned = max(geometry.rotation_angle(_rotation(geometry.inverse(middle) @ one)) for one in matrices)
    except ValueError:
        turned = 180.0
    if turned >= 120.0:
        middle = geometry.from_parts(_rotation(np.sum(matrices, axis=0)))
        centers = [geometry.transform_points(one, cloud.mean[None])[0] for one, cloud in zip(matrices, clouds)]
        middle[:3, 3] = np.mean(centers, axis=0) - middle[:3, :3] @ np.mean([c.mean for c in clouds], axis=0)
    back = geometry.inverse(middle)
    return np.array([back @ one for one in matrices])


def _rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation (3×3) nearest to a matrix's linear part."""
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    return (u * [1.0, 1.0, np.linalg.det(u @ vt)]) @ vt


def pairs_to_register(count: int, all_up_to: int = 12) -> list:
    """Pairs (i, j), i < j: all of few volumes; of many, five a volume so that every pair is in triangles.

    Numbers on a circle are joined at distances 1, a, a + 1, b and a + b with a ≈ √N and b ≈ N/3: a triangle for each
    two and their sum, and from any volume to any other in a few steps.
    """
    if count <= all_up_to:
        return list(combinations(range(count), 2))
    a, b = round(count**0.5), round(count / 3)
    steps = sorted({step % count for step in (1, a, a + 1, b, a + b)} - {0})
    return sorted({(min(i, j), max(i, j)) for i in range(count) for j in ((i + s) % count for s in steps)})
