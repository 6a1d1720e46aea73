"""Finding the pose among all rotations, ranking candidates, and the check by repetition.

Transforms here map the fixed to the moving cube frame (polish.py), 4×4 float64.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from . import enface, geometry
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


def poses(moving, fixed, seed: int, keep: int = CANDIDATES, rotations: str = "all") -> list:
    """The most promising poses, best first. rotations: which are possible (modality.Modality); for "depth" see enface.py.

    Sixty rotations about the tissue's centers and the headers' own pose are each refined rigidly on cubes of about
    10 mm, in one batch, and the best that differ from each other are kept.
    """
    if rotations == "depth":
        return enface.poses(moving, fixed, keep)
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


def rank(moving, fixed, matrices, rotations: str = "all") -> Ranking:
    """Rank transforms after a short affine refinement each at about 7 mm; those of scans of eyes as they are."""
    if rotations == "depth":
        scores = enface.likeness(moving, fixed, matrices)
        return Ranking(scores, int(scores.argmax()))
    a, b = (_coarse(s, 2.0, 0.7, 4000, 0) for s in (fixed, moving))
    batch = torch.as_tensor(np.array(matrices), device=a.points.device)
    refined = gauss_newton.refine(a, b, batch, kind="similarity", iterations=4)
    scores = _score(a, b, refined).cpu().numpy()
    return Ranking(scores, int(scores.argmax()))


# --- when the first answer is doubtful ----------------------------------------------------------------------

#: Shifts in mm, along each axis, from which every rotation is tried when heads may lie far apart in their fields of view.
SHIFTS = (-30.0, 0.0, 30.0)

#: Candidates of each kind that go into the comparison.
WIDE_CANDIDATES = 16


def wide_poses(moving, fixed, seed: int, keep: int = WIDE_CANDIDATES) -> list:
    """Poses by correlation from sixty rotations times 27 shifts, for volumes that show different parts of a head."""
    a, b = (_coarse(s, 3.0, 0.9, 800, seed) for s in (fixed, moving))
    center_a, center_b = a.points.mean(0).double().cpu().numpy(), b.points.mean(0).double().cpu().numpy()
    shifts = np.array(np.meshgrid(SHIFTS, SHIFTS, SHIFTS)).reshape(3, -1).T
    starts = [
        geometry.about(r, center_a, center_b - center_a + s) for r in geometry.rotation_group() for s in shifts
    ]
    matrices = torch.as_tensor(np.array(starts), device=a.points.device)
    for kind, kept, iterations in (("rigid", 240, 5), ("similarity", 60, 6)):
        matrices = matrices[_in_parts(_score, a, b, matrices).topk(min(kept, len(matrices))).indices]
        matrices = _in_parts(gauss_newton.refine, a, b, matrices, kind=kind, iterations=iterations, longest=25.0)
    score = _in_parts(_score, a, b, matrices)
    return [matrices[i].cpu().numpy() for i in _distinct(a, matrices, score, keep)]


def _in_parts(function, a, b, matrices, size: int = 64, **options):
    """function(a, b, matrices) over parts of the batch, so that memory stays small."""
    return torch.cat([function(a, b, part, **options) for part in matrices.split(size)])


def point_poses(moving, fixed, describe, keep: int = WIDE_CANDIDATES) -> list:
    """Poses by the network's own feature points, without any similarity of intensities; best first.

    describe: (B×1×D×H×W) → points B×N×3 (normalized) and log-weights B×N. Both volumes are described in sixty
    orientations each; a pose is good where many points of a view of one find their partners in a view of the other.
    """
    (x, trust_x), (y, trust_y) = (_views(s, describe) for s in (fixed, moving))
    matrices, score = consensus(x, trust_x, y, trust_y)
    a = _coarse(fixed, 3.0, 0.7, 300, 0)
    return [matrices[i].cpu().numpy() for i in _distinct(a, matrices, score, keep)]


def _views(cube, describe, batch: int = 10):
    """Points (60×N×3, mm in the cube's frame, float64) and log-weights (60×N) of a cube seen in sixty orientations."""
    from .diffusion import warp

    to_ras, center = cube.grid.normalized_to_ras, cube.prepared.tissue_center
    theta = torch.as_tensor(np.array([
        geometry.world_to_theta(geometry.about(r, center, np.zeros(3)), to_ras, to_ras)
        for r in geometry.rotation_group()
    ]), dtype=torch.float32, device=cube.values.device)
    points, trust = [], []
    for part in theta.split(batch):
        found, weight = describe(warp(cube.values.expand(len(part), -1, -1, -1, -1), part))
        points.append(torch.einsum("bij,bnj->bni", part[:, :, :3], found) + part[:, None, :, 3])
        trust.append(weight)
    to_frame = torch.as_tensor(np.linalg.inv(cube.frame) @ to_ras, device=theta.device)
    points = torch.cat(points).double()
    return points @ to_frame[:3, :3].T + to_frame[:3, 3], torch.cat(trust).double()


def consensus(x, trust_x, y, trust_y, scale: float = 12.0, iterations: int = 5):
    """The similarity transform between every view of one volume and every view of the other that most points obey.

    x: A×N×3, y: B×N×3 points in mm; trust: log-weights A×N, B×N. Returns (A·B×4×4 that map x to y, A·B scores in
    0…1). Weighted least squares (Umeyama, IEEE PAMI 13(4):376, 1991), reweighted by the Cauchy function whose scale
    sinks to ``scale`` mm; the score is the mean of its final weights.
    """
    count, n = len(x) * len(y), x.shape[1]
    given = torch.softmax((trust_x[:, None] + trust_y[None]).reshape(count, n), dim=1)
    x = x[:, None].expand(-1, len(y), -1, -1).reshape(count, n, 3)
    y = y[None].expand(count // len(y), -1, -1, -1).reshape(count, n, 3)
    weights, width = given, 60.0
    for _ in range(iterations):
        share = (weights / weights.sum(1, keepdim=True))[..., None]
        mean_x, mean_y = (share * x).sum(1, keepdim=True), (share * y).sum(1, keepdim=True)
        u, s, vt = torch.linalg.svd((share * (x - mean_x)).transpose(1, 2) @ (y - mean_y))
        s = torch.cat([s[:, :2], s[:, 2:] * torch.det(u @ vt)[:, None].sign()], dim=1)
        rotation = vt.transpose(1, 2) @ torch.diag_embed(torch.cat([
            torch.ones_like(s[:, :2]), torch.det(u @ vt)[:, None].sign()], dim=1)) @ u.transpose(1, 2)
        size = (share * (x - mean_x).square()).sum((1, 2)).clamp_min(1e-6)
        linear = (s.sum(1) / size).clamp(0.75, 1.35)[:, None, None] * rotation
        shift = mean_y - mean_x @ linear.transpose(1, 2)
        width = max(scale, 0.55 * width)
        weights = given / (1 + (x @ linear.transpose(1, 2) + shift - y).square().sum(2) / width**2)
    matrices = torch.eye(4, dtype=x.dtype, device=x.device).repeat(count, 1, 1)
    matrices[:, :3, :3], matrices[:, :3, 3] = linear, shift[:, 0]
    score = (given / (1 + (x @ linear.transpose(1, 2) + shift - y).square().sum(2) / scale**2)).sum(1)
    return matrices, score


def spread(moving, fixed, matrix, kind: str, seed: int, rotations: str = "all") -> float:
    """RMS distance in mm over the tissue between the answer and repeated refinements from known perturbed starts."""
    if rotations == "depth":
        return enface.spread(moving, fixed, matrix, seed=seed)
    degrees = millimeters = 6.0
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
