"""Poses, and agreement with an answer, by what a network finds to correspond in two volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

import numpy as np
import torch

from ..heartbeat import beat
from ..modelfile.model import Correspondences
from ..spatial import geometry
from ..spatial.cube import Cube
from .pose_search import coarse, distinct

#: Points by which poses are told apart (voxel size relative to the model's, blur in voxels, how many).
LEVEL = (3.0, 0.7, 300)

#: The consensus: mm of the Cauchy function at first, the factor by which they sink in each round, rounds; and the least
#: and largest size of one volume relative to the other. Chosen, untested.
WIDEST, SINKING, ROUNDS = 60.0, 0.55, 5
SIZES = 0.75, 1.35


def network_poses(
    moving: Cube, fixed: Cube, correspondences: Correspondences, keep: int, turned: bool = True
) -> tuple[list[np.ndarray], Cube]:
    """(poses, upright): by what the network finds to correspond, without any similarity of intensities; best first.

    correspondences: see Model.correspondences. turned: whether one of the headers may be wrong: then each volume as its
    header says is compared with sixty orientations of the other. One header must be about right, for the network knows
    heads near their usual orientation only. A pose is good where many places find their partners, and surely. upright:
    the fixed Cube, turned as the best pose says where the moving header is the right one, for what the network does
    next.
    """
    describe, correspond = correspondences
    first = _views(fixed, describe, turned)
    second = _views(moving, describe, turned)
    count = len(second.theta)
    # The group begins with no rotation at all.
    pairs = [(0, i) for i in range(count)] + [(i, 0) for i in range(1, len(first.theta))]
    x, y, trust, sure = _places(first, second, pairs, correspond)
    found, agreed = consensus(x, y, trust)
    matrices, score = found.cpu().numpy(), (agreed * sure).cpu().numpy()
    a = coarse(fixed, *LEVEL, seed=0)
    chosen = distinct(a, matrices, score, keep)
    poses = [matrices[i] for i in chosen]
    upright = fixed
    if chosen[0] >= count:
        world = moving.frame @ poses[0] @ np.linalg.inv(fixed.frame)
        turn = geometry.project(world, "rigid", np.zeros(3), np.eye(3))[:3, :3].T
        upright = fixed.on(fixed.grid.moved(geometry.about(turn, fixed.prepared.tissue_center, np.zeros(3))))
    return poses, upright


def agreements(
    moving: Cube, fixed: Cube, worlds: Sequence[np.ndarray], correspondences: Correspondences, scale: float = 6.0
) -> np.ndarray:
    """How far what the network finds to correspond agrees with fixed → moving RAS matrices, 0…1 each.

    The weighted mean of 1/(1 + (d/scale)²) over the distances d in mm of the places found, with the moving volume laid
    on the fixed one.
    """
    from ..method.diffusion import warp

    describe, correspond = correspondences
    theta = torch.as_tensor(
        np.array(
            [geometry.world_to_theta(w, fixed.grid.normalized_to_ras, moving.grid.normalized_to_ras) for w in worlds]
        ),
        dtype=torch.float32,
        device=fixed.values.device,
    )
    moved = describe(warp(moving.values.expand(len(worlds), -1, -1, -1, -1), theta))
    still = tuple(part.expand(len(worlds), *part.shape[1:]) for part in describe(fixed.values))
    x, y, trust, _ = correspond(still, moved)
    to_frame = torch.as_tensor(np.linalg.inv(fixed.frame) @ fixed.grid.normalized_to_ras, device=x.device).float()
    apart = ((y - x) @ to_frame[:3, :3].T).square().sum(2)
    return (torch.softmax(trust, dim=1) / (1 + apart / scale**2)).sum(1).cpu().numpy()


#: mm of distance at which a place counts half when the network is asked about an answer.
COARSE_AGREEMENT = 15.0


def agreement(moving: Cube, fixed: Cube, world: np.ndarray, correspondences: Correspondences) -> float:
    """How far the network agrees with one answer: the larger of both ways, for it knows upright volumes only and one of
    the headers may be turned."""
    back = geometry.inverse(world)
    return float(
        max(
            agreements(moving, fixed, [world], correspondences, COARSE_AGREEMENT)[0],
            agreements(fixed, moving, [back], correspondences, COARSE_AGREEMENT)[0],
        )
    )


@dataclass(frozen=True)
class _Views:
    """A cube in some orientations: as the network describes them, and V×3×4 from there to the cube's frame in mm."""

    described: tuple
    theta: torch.Tensor

    def of(self, indices: list[int]) -> tuple:
        return tuple(part[indices] for part in self.described)

    def in_frame(self, indices: list[int], points: torch.Tensor) -> torch.Tensor:
        """P×N×3 normalized points of views, mm in the cube's frame (float64)."""
        matrix = self.theta[indices]
        return points.double() @ matrix[:, :, :3].transpose(1, 2) + matrix[:, None, :, 3]


def _views(cube: Cube, describe: Callable[..., tuple], turned: bool, batch: int = 10) -> _Views:
    """All sixty, or only the one that its header says."""
    from ..method.diffusion import warp

    to_ras, center = cube.grid.normalized_to_ras, cube.prepared.tissue_center
    turns = np.array(
        [
            geometry.world_to_theta(geometry.about(r, center, np.zeros(3)), to_ras, to_ras)
            for r in (geometry.rotation_group() if turned else [np.eye(3)])
        ]
    )
    theta = torch.as_tensor(turns, dtype=torch.float32, device=cube.values.device)
    described = [describe(warp(cube.values.expand(len(part), -1, -1, -1, -1), part)) for part in theta.split(batch)]
    to_frame = np.linalg.inv(cube.frame) @ to_ras
    turns = to_frame[:3, :3] @ turns
    turns[:, :, 3] += to_frame[:3, 3]
    return _Views(
        tuple(torch.cat(parts) for parts in zip(*described)), torch.as_tensor(turns, device=cube.values.device)
    )


def _places(
    fixed: _Views, moving: _Views, pairs: Sequence[tuple[int, int]], correspond: Callable[..., tuple], batch: int = 6
) -> tuple[torch.Tensor, ...]:
    """What corresponds in pairs of views: P×N×3 in the fixed cube's frame and in the moving one's, mm; log-weights P×N;
    and how sure that is, P.
    """
    found = []
    for start in range(0, len(pairs), batch):
        beat()
        a, b = (list(index) for index in zip(*pairs[start : start + batch]))
        x, y, trust, sure = correspond(fixed.of(a), moving.of(b))
        found.append((fixed.in_frame(a, x), moving.in_frame(b, y), trust.double(), sure.double()))
    return tuple(torch.cat(parts) for parts in zip(*found))


def consensus(
    x: torch.Tensor, y: torch.Tensor, trust: torch.Tensor, scale: float = 12.0, iterations: int = ROUNDS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The similarity transforms that most of a set of correspondences obey.

    x, y: P×N×3, mm; trust: log-weights, P×N. Returns (P×4×4 that map x to y, P scores in 0…1). Weighted least squares
    (Umeyama, IEEE PAMI 13(4):376, 1991), reweighted by the Cauchy function whose scale sinks to ``scale`` mm; the score
    is the mean of its final weights.
    """
    count, given = len(x), torch.softmax(trust, dim=1)
    weights, width = given, WIDEST
    for _ in range(iterations):
        share = (weights / weights.sum(1, keepdim=True))[..., None]
        mean_x, mean_y = (share * x).sum(1, keepdim=True), (share * y).sum(1, keepdim=True)
        u, s, vt = torch.linalg.svd((share * (x - mean_x)).transpose(1, 2) @ (y - mean_y))
        s = torch.cat([s[:, :2], s[:, 2:] * torch.det(u @ vt)[:, None].sign()], dim=1)
        rotation = (
            vt.transpose(1, 2)
            @ torch.diag_embed(torch.cat([torch.ones_like(s[:, :2]), torch.det(u @ vt)[:, None].sign()], dim=1))
            @ u.transpose(1, 2)
        )
        size = (share * (x - mean_x).square()).sum((1, 2)).clamp_min(1e-6)
        linear = (s.sum(1) / size).clamp(*SIZES)[:, None, None] * rotation
        shift = mean_y - mean_x @ linear.transpose(1, 2)
        width = max(scale, SINKING * width)
        weights = given / (1 + (x @ linear.transpose(1, 2) + shift - y).square().sum(2) / width**2)
    matrices = torch.eye(4, dtype=x.dtype, device=x.device).repeat(count, 1, 1)
    matrices[:, :3, :3], matrices[:, :3, 3] = linear, shift[:, 0]
    score = (given / (1 + (x @ linear.transpose(1, 2) + shift - y).square().sum(2) / scale**2)).sum(1)
    return matrices, score
