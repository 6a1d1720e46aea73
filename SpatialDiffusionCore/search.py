"""Finding the pose among all rotations, ranking candidates, and the check by repetition.

Transforms here map the fixed to the moving cube frame (polish.py), 4×4 float64.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from . import geometry
from . import polish as gauss_newton

#: Number of candidate poses that go into the diffusion.
CANDIDATES = 3

#: A pose whose score is below this share of the best one's is no rival: on clean brains the best wrong pose reaches
#: 0.77 to 0.90 of the right one's correlation, and the diffusion then has only one candidate to work on.
RIVAL = 0.92


def _coarse(cube, factor: float, sigma: float, count: int, seed: int):
    """A Side of a cube at 1/factor of its resolution."""
    size = [max(12, int(round(n / factor))) for n in cube.grid.shape]
    values = gauss_newton.blur(F.interpolate(cube.values, size=size, mode="area"), sigma)
    support, tissue = (F.interpolate(v, size=size, mode="area") for v in (cube.support, cube.tissue()))
    if tissue.max() <= 0.5:  # thin structures vanish when averaged
        tissue = tissue / tissue.max().clamp_min(1e-6)
    spacing = cube.spacing * np.array(cube.grid.shape) / np.array(size)
    return gauss_newton.side(values, support, tissue, spacing, count, seed)


def poses(moving, fixed, seed: int, keep: int = CANDIDATES) -> list:
    """The most promising poses, best first.

    Sixty rotations about the tissue's centers and the headers' own pose are each refined rigidly on cubes of about
    10 mm, in one batch, and the best that differ from each other are kept.
    """
    a, b = (_coarse(s, 3.0, 0.7, 1500, seed) for s in (fixed, moving))
    center_a, center_b = a.points.mean(0).double().cpu().numpy(), b.points.mean(0).double().cpu().numpy()
    starts = [geometry.about(r, center_a, center_b - center_a) for r in geometry.rotation_group()]
    header = np.linalg.inv(moving.frame) @ fixed.frame
    starts.append(header)
    matrices = torch.as_tensor(np.array(starts), device=a.points.device)
    matrices = gauss_newton.refine(a, b, matrices, kind="rigid", iterations=6, longest=25.0)
    score = _score(a, b, matrices)
    first = score.topk(min(len(score), 4 * keep)).indices
    matrices = gauss_newton.refine(a, b, matrices[first], kind="similarity", iterations=6)
    score = _score(a, b, matrices)
    best = float(score.max())
    rivals = [i for i in _distinct(a, matrices, score, keep) if float(score[i]) >= min(best, RIVAL * best)]
    return [matrices[i].cpu().numpy() for i in rivals]


def _score(a, b, matrices):
    """Correlation, with less trust where little overlaps."""
    similarity, overlap = gauss_newton.correlation(a, b, matrices)
    return torch.nan_to_num(similarity * overlap.clamp(0, 1).sqrt(), nan=-1.0)


def _distinct(a, matrices, score, keep, apart: float = 15.0):
    """Indices of the best-scored transforms that lie more than ``apart`` mm (RMS) from each other."""
    points = a.points.double().cpu().numpy()
    mean, covariance = points.mean(0), np.cov(points.T, bias=True)
    chosen = []
    for index in score.argsort(descending=True).tolist():
        matrix = matrices[index].cpu().numpy()
        far = all(
            geometry.displacement_rms(matrix, matrices[c].cpu().numpy(), mean, covariance) > apart for c in chosen
        )
        if far:
            chosen.append(index)
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
    a, b = (_coarse(s, 2.0, 0.7, 4000, 0) for s in (fixed, moving))
    batch = torch.as_tensor(np.array(matrices), device=a.points.device)
    refined = gauss_newton.refine(a, b, batch, kind="similarity", iterations=4)
    scores = _score(a, b, refined).cpu().numpy()
    return Ranking(scores, int(scores.argmax()))


def spread(moving, fixed, matrix, kind: str, seed: int, degrees: float = 6.0, millimeters: float = 6.0) -> float:
    """RMS distance in mm over the tissue between the answer and repeated refinements from known perturbed starts."""
    a, b = (_coarse(s, 1.5, 0.8, 6000, seed) for s in (fixed, moving))
    points = a.points.double().cpu().numpy()
    mean, covariance = points.mean(0), np.cov(points.T, bias=True)
    starts = [np.asarray(matrix, float)]
    for axis in np.vstack([np.eye(3), -np.eye(3)]):
        turn = geometry.rotation_about(axis, np.radians(degrees))
        starts.append(matrix @ geometry.about(turn, mean, millimeters * np.roll(axis, 1)))
    batch = torch.as_tensor(np.array(starts), device=a.points.device)
    refined = gauss_newton.refine(a, b, batch, kind=kind, iterations=8).cpu().numpy()
    distances = [geometry.displacement_rms(r, refined[0], mean, covariance) for r in refined[1:]]
    return float(np.sqrt(np.mean(np.square(distances))))
