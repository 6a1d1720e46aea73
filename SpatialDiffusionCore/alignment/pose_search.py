"""Finding the pose among all rotations, and ranking candidates.

Transforms here map the fixed to the moving cube frame (gauss_newton.py), 4×4 float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F

from ..networks import layers
from ..spatial import geometry
from . import gauss_newton

#: Number of candidate poses that go into the diffusion.
CANDIDATES = 3

#: A pose whose score is below this share of the best one's is no rival: on clean brains the best wrong pose reaches
#: 0.77 to 0.90 of the right one's correlation, and the diffusion then has only one candidate to work on.
RIVAL = 0.92


def coarse(cube, factor: float, sigma: float, count: int, seed: int):
    """A Side of a cube at 1/factor of its resolution."""
    size = [max(12, int(round(n / factor))) for n in cube.grid.shape]
    values = layers.blur(F.interpolate(cube.values, size=size, mode="area"), sigma)
    support, tissue = (F.interpolate(v, size=size, mode="area") for v in (cube.support, cube.tissue))
    if tissue.max() <= 0.5:  # thin structures vanish when averaged
        tissue = tissue / tissue.max().clamp_min(1e-6)
    spacing = cube.spacing * np.array(cube.grid.shape) / np.array(size)
    return gauss_newton.side(values, support, tissue, spacing, count, seed)


def poses(moving, fixed, seed: int, keep: int = CANDIDATES) -> list:
    """The most promising poses, best first.

    Sixty rotations about the tissue's centers and the headers' own pose are each refined rigidly on cubes of about
    10 mm, in one batch, and the best that differ from each other are kept.
    """
    a, b = (coarse(s, 3.0, 0.7, 1500, seed) for s in (fixed, moving))
    center_a, center_b = a.points.mean(0).cpu().double().numpy(), b.points.mean(0).cpu().double().numpy()
    starts = [geometry.about(r, center_a, center_b - center_a) for r in geometry.rotation_group()]
    header = np.linalg.inv(moving.frame) @ fixed.frame
    starts.append(header)
    matrices = gauss_newton.refine(a, b, starts, kind="rigid", iterations=6, longest=25.0)
    first = np.argsort(-_score(a, b, matrices), kind="stable")[: 4 * keep]
    matrices = gauss_newton.refine(a, b, matrices[first], kind="similarity", iterations=6)
    score = _score(a, b, matrices)
    best = score.max()
    return [matrices[i] for i in _distinct(a, matrices, score, keep) if score[i] >= min(best, RIVAL * best)]


def _score(a, b, matrices):
    """Correlation, with less trust where little overlaps."""
    similarity, overlap = gauss_newton.correlation(a, b, matrices)
    return np.nan_to_num(similarity * np.sqrt(overlap.clip(0, 1)), nan=-1.0)


def _distinct(a, matrices, score, keep, apart: float = 15.0):
    """Indices of the best-scored transforms that lie more than ``apart`` mm (RMS) from each other."""
    points = a.points.cpu().double().numpy()
    mean, covariance = points.mean(0), np.cov(points.T, bias=True)
    chosen = []
    for index in np.argsort(-score, kind="stable"):
        if all(geometry.displacement_rms(matrices[index], matrices[c], mean, covariance) > apart for c in chosen):
            chosen.append(int(index))
        if len(chosen) == keep:
            break
    return chosen


@dataclass
class Ranking:
    """Scores of candidates and the best one's index."""

    scores: np.ndarray
    best: int


def rank(moving, fixed, matrices) -> Ranking:
    """Rank transforms after a short affine refinement each at about 7 mm."""
    a, b = (coarse(s, 2.0, 0.7, 4000, 0) for s in (fixed, moving))
    scores = _score(a, b, gauss_newton.refine(a, b, matrices, kind="similarity", iterations=4))
    return Ranking(scores, int(scores.argmax()))


#: Likeness below which the best of the wide candidates is doubtful, too. Right answers between two people reached 0.53
#: to 0.62 for stripped brains and 0.25 to 0.39 for whole heads, wrong ones 0.05 to 0.23.
DOUBTFUL = 0.25
