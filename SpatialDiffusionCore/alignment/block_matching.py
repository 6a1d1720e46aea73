"""Refinement by blocks that vote: what holds where parts of a volume lie elsewhere than the rest says.

Motion within a scan shifts slabs of it, lesions and crops change or remove parts. Descent on all voxels then ends
between the parts, even when begun at the truth. Here small blocks of the fixed volume look for their like nearby in the
moving one, and the affine is that of the third of them which agrees best (block matching and least trimmed squares;
Ourselin et al., Image and Vision Computing 19:25, 2001).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..heartbeat import beat
from ..networks.layers import blur
from ..spatial import geometry
from ..spatial.cube import Cube
from .self_similarity import laid_on

# How these were found, and what else was tried: Training/NOTES.md, "Heads corrupted in every way".

#: Voxel size relative to the model's, blur, edge of a block, distance between blocks and how far they look, in voxels.
FACTOR, SIGMA, EDGE, APART, REACH = 1.2, 0.7, 5, 2, 3

#: The share of the blocks, those with the likest matches, that vote; and that of the voters whom the fit follows.
VOTERS, KEPT = 0.5, 0.3

#: Variance (intensities are 0…1) below which a block shows nothing; most blocks; fewest that can tell.
FLAT, MOST, FEWEST = 2e-4, 3000, 60

#: Rounds of matching and fitting; ridge of the fit, as a share of the blocks' mean variance per axis.
ROUNDS, RIDGE = 3, 1e-3


#: A block counts where so much of it is known in both volumes; between voxels places count by exp(SHARPNESS · c), where
#: c is their squared correlation. Chosen, untested.
KNOWN, SHARPNESS = 0.99, 20.0

#: The fit follows this share of the blocks at first, FEWER times as many in each round until KEPT are left; most rounds
#: where they do not settle.
FOLLOWED, FEWER, SETTLING = 0.8, 0.85, 30


def refine(moving: Cube, fixed: Cube, world: np.ndarray, kind: str) -> np.ndarray:
    """Refine a fixed → moving RAS transform (4×4) of a kind between two Cubes; as it is if too few blocks can tell."""
    for _ in range(ROUNDS):
        beat()
        places, moves, alike, frame = matches(moving, fixed, world)
        if len(places) < FEWEST:
            break
        voters = alike >= np.quantile(alike, 1 - VOTERS)
        change = trimmed_fit(places[voters], moves[voters])
        world = geometry.project(
            world @ frame @ change @ np.linalg.inv(frame),
            kind,
            fixed.prepared.tissue_center,
            fixed.prepared.tissue_covariance,
        )
    return world


def matches(moving: Cube, fixed: Cube, world: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N×3 centers of blocks in the fixed tissue, N×3 by how much their like lies elsewhere in the moving volume laid
    there by ``world``, N squared correlations with it; 4×4 from these voxels to RAS).
    """
    a, b, frame = laid_on(moving, fixed, world, FACTOR, margin=REACH + 1)
    half = EDGE // 2
    around = [REACH + half] * 6

    def mean(volume: torch.Tensor) -> torch.Tensor:
        return F.avg_pool3d(volume, EDGE, 1, half)

    one, other, known, seen, tissue = (
        F.pad(v, around)
        for v in (blur(a.values, SIGMA) * a.support, blur(b.values, SIGMA) * b.support, a.support, b.support, a.tissue)
    )
    spread_one = mean(one * one) - mean(one) ** 2
    spread_other = (mean(other * other) - mean(other) ** 2).clamp_min(0).flatten() + FLAT / 2
    whole = (mean(seen) > KNOWN).flatten()
    inside = ((mean(tissue) > 0.5) & (mean(known) > KNOWN) & (spread_one > FLAT))[0, 0]
    inside = inside[tuple(slice(around[0], None, APART) for _ in range(3))].nonzero() * APART + around[0]
    if len(inside) > MOST:
        inside = inside[
            torch.randperm(len(inside), generator=torch.Generator().manual_seed(0))[:MOST].to(inside.device)
        ]
    strides = torch.tensor(one.stride()[2:], device=one.device)
    center = (inside * strides).sum(1)
    steps = torch.arange(-half, half + 1, device=one.device)
    block = center[:, None] + (torch.cartesian_prod(steps, steps, steps) * strides).sum(1)
    one, other = one.flatten(), other.flatten()
    template = one[block]
    template = template - template.mean(1, keepdim=True)
    template = template / template.norm(dim=1, keepdim=True).clamp_min(1e-6)
    steps = torch.arange(-REACH, REACH + 1, device=one.device)
    offsets = torch.cartesian_prod(steps, steps, steps)
    products = []
    for offset in (offsets * strides).sum(1).tolist():
        product = (template * other[block + offset]).sum(1)
        there = center + offset
        products.append(product.square() / (EDGE**3 * spread_other[there]) * whole[there])
    alike = torch.stack(products, dim=1)  # N×offsets
    best, index = alike.max(1, keepdim=True)
    offsets = offsets.to(alike.dtype)
    # Between voxels: the mean of the best place and its neighbors, weighted by how nearly as like they are.
    near = (offsets - offsets[index]).square().sum(2) <= 2
    weights = near * (SHARPNESS * (alike - best)).exp()
    moves = weights @ offsets / weights.sum(1, keepdim=True)
    met = best[:, 0] > 0  # others found nothing but the end of the volume
    centers, moved, correlations = (v[met].cpu().double().numpy() for v in (inside - around[0], moves, best[:, 0]))
    return centers, moved, correlations, frame


def trimmed_fit(places: np.ndarray, moves: np.ndarray, kept: float = KEPT) -> np.ndarray:
    """4×4 of the affine that moves N×3 places by N×3 moves, fitted to the share of them that it fits best.

    Least squares of all, then of fewer and fewer, those with the smallest residuals (Rousseeuw, J. Am. Stat. Assoc.
    79:871, 1984).
    """
    chosen, share = np.ones(len(places), bool), FOLLOWED
    for _ in range(SETTLING):
        mean = places[chosen].mean(0)
        centered = np.c_[places - mean, np.ones(len(places))]
        used = centered[chosen]
        normal = used.T @ used
        normal[:3, :3] += np.eye(3) * RIDGE * np.trace(normal[:3, :3]) / 3
        solution = np.linalg.solve(normal, used.T @ moves[chosen])
        residual = np.linalg.norm(centered @ solution - moves, axis=1)
        share = max(kept, FEWER * share)
        best = residual <= np.quantile(residual, share)
        if share == kept and (best == chosen).all():
            break
        chosen = best
    return geometry.from_parts(np.eye(3) + solution[:3].T, solution[3] - solution[:3].T @ mean)
