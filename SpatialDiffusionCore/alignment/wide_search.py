"""Poses of volumes that show different parts of a body: all rotations at every shift of the whole volumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..heartbeat import beat
from ..spatial import geometry
from ..spatial.cube import Cube
from ..spatial.volume import Grid
from . import gauss_newton
from .pose_search import ITERATIONS, coarse, distinct
from .pose_search import LONGEST as LONGEST_STEP

#: Candidates of each kind that go into the comparison.
WIDE_CANDIDATES = 16

#: mm between the voxels on which whole volumes are compared at every shift; and the most voxels along an axis.
OVERVIEW, LONGEST = 12.0, 32

#: On what candidates are refined, as pose_search.LEVEL: fewer points, as there are many candidates. Chosen, untested.
LEVEL = (3.0, 0.9, 800)

#: Refined of each kind for one that is kept; how many at once, and rotations between two beats of the work.
REFINED, BATCH, TURNS = 6, 64, 10

#: Least share of the smaller volume that must lie inside the other.
SHARE = 0.25


def wide_poses(moving: Cube, fixed: Cube, seed: int, keep: int = 2 * WIDE_CANDIDATES) -> Iterator[list[np.ndarray]]:
    """Poses for volumes that show different parts of a body: sixty rotations, each at every shift of the whole volumes.

    The best by correlation, over the common field of view and over the common tissue in turns, refined rigidly, then
    with scale, on cubes of about 10 mm. Yields what there is after each part of the work, so that it can be stopped;
    the last list is the answer.
    """
    stays, moves = (_overview(s) for s in (fixed, moving))
    found: dict[str, list] = {"support": [], "tissue": []}
    for within in found:
        for start in range(0, len(geometry.rotation_group()), TURNS):
            turns = geometry.rotation_group()[start : start + TURNS]
            found[within] += _at_every_shift(stays, moves, within, turns)
            yield []
    ranked = [[world for _, world in sorted(each, key=lambda pair: -pair[0])] for each in found.values()]
    best = [world for pair in zip(*ranked) for world in pair][: REFINED * keep]
    factor, sigma, count = LEVEL
    a, b = (coarse(cube, factor, sigma, count, seed) for cube in (fixed, moving))
    if not (best and len(a.points) and len(b.points)):
        return
    into, back = np.linalg.inv(moving.frame), fixed.frame
    matrices = np.array([into @ world @ back for world in best])
    for kind in ("rigid", "similarity"):
        parts = []
        for start in range(0, len(matrices), BATCH):
            part = matrices[start : start + BATCH]
            parts.append(gauss_newton.refine(a, b, part, kind=kind, iterations=ITERATIONS, longest=LONGEST_STEP))
            yield []
        matrices = np.concatenate(parts)
    yield [matrices[i] for i in distinct(a, matrices, -np.arange(float(len(matrices))), keep)]


@dataclass(frozen=True)
class Overview:
    """A whole volume's tissue at low resolution: values, support and tissue (D×H×W), and the 4×4 voxel → RAS matrix."""

    values: torch.Tensor
    support: torch.Tensor
    tissue: torch.Tensor
    voxel_to_ras: np.ndarray

    @property
    def step(self) -> float:
        return float(geometry.spacing(self.voxel_to_ras)[0])


def _overview(cube: Cube) -> Overview:
    """The box around all tissue of a cube's volume, also outside the cube, along the cube's axes."""
    axes = cube.grid.voxel_to_ras[:3, :3] / cube.spacing
    corners = (
        geometry.transform_points(
            cube.prepared.volume.voxel_to_ras,
            np.array(list(np.ndindex(2, 2, 2))) * np.array(cube.prepared.volume.shape) - 0.5,
        )
        @ axes
    )
    extent = np.ptp(corners, axis=0)
    step = max(OVERVIEW, float(extent.max()) / LONGEST)
    shape = np.clip(np.ceil(extent / step), 2, LONGEST).astype(int)
    to_ras = geometry.from_parts(axes * step, axes @ ((corners.min(0) + corners.max(0)) / 2 - (shape - 1) / 2 * step))
    whole = cube.on(Grid(tuple(int(n) for n in shape), to_ras))
    tissue = whole.tissue[0, 0]
    inside = tissue.nonzero() if bool(tissue.any()) else torch.ones_like(tissue).nonzero()
    first, last = (inside.amin(0) - 1).clamp_min(0), inside.amax(0) + 2
    part = tuple(slice(int(i), int(j)) for i, j in zip(first, last))
    return Overview(
        whole.values[0, 0][part],
        whole.support[0, 0][part],
        tissue[part],
        to_ras @ geometry.from_parts(np.eye(3), first.cpu().numpy().astype(float)),
    )


def _at_every_shift(fixed: Overview, moving: Overview, within: str, rotations: np.ndarray, peaks: int = 2) -> list:
    """[(correlation, fixed → moving RAS matrix)]: the ``peaks`` best shifts of each of N×3×3 rotations."""
    device = fixed.values.device
    f, mask = fixed.values, getattr(fixed, within)
    scale = moving.step / fixed.step
    count = int(np.ceil(np.linalg.norm(moving.values.shape) * scale)) + 1  # room for any rotation
    both = torch.stack([moving.values, getattr(moving, within)])[None]
    axes = fixed.voxel_to_ras[:3, :3]
    center = geometry.transform_points(moving.voxel_to_ras, (np.array([moving.values.shape]) - 1) / 2)[0]
    found = []
    for rotation in rotations:
        beat()
        turned = rotation @ axes
        to_ras = geometry.from_parts(turned, center - turned @ np.full(3, (count - 1) / 2))
        theta = (
            np.linalg.inv(moving.voxel_to_ras @ geometry.normalized_to_voxel(both.shape[2:]))
            @ to_ras
            @ geometry.normalized_to_voxel((count,) * 3)
        )
        theta = torch.as_tensor(theta[None, :3], dtype=torch.float32, device=device)
        g, other = F.grid_sample(
            both, F.affine_grid(theta, [1, 1, count, count, count], align_corners=False), align_corners=False
        )[0]
        other = (other > 0.5).to(g.dtype)
        if not bool(other.any()):
            continue
        filled = other.nonzero()
        first = filled.amin(0)
        part = tuple(slice(int(i), int(j)) for i, j in zip(first, filled.amax(0) + 1))
        score = masked_correlation(f, mask, g[part], other[part])
        score = torch.where(score == F.max_pool3d(score[None, None], 5, 1, 2)[0, 0], score, -torch.ones_like(score))
        for value, place in zip(*(t.tolist() for t in score.flatten().topk(peaks))):
            shift = np.array(np.unravel_index(place, score.shape))
            shift = np.where(shift > np.array(score.shape) - np.array(f.shape), shift - np.array(score.shape), shift)
            there = geometry.from_parts(np.eye(3), shift + first.cpu().numpy().astype(float))
            found.append((value, to_ras @ there @ np.linalg.inv(fixed.voxel_to_ras)))
    return found


def masked_correlation(f: torch.Tensor, mask_f: torch.Tensor, g: torch.Tensor, mask_g: torch.Tensor) -> torch.Tensor:
    """Correlation of two volumes over the voxels known in both, at every shift s that pairs f[x] with g[x + s].

    All are D×H×W (f and g may differ in size); negative shifts are at the end of each axis. Multiplied by the root of
    the share of the smaller mask that overlaps; -1 where that is less than SHARE. Padfield, IEEE TIP 21(5):2706, 2012.
    """
    size = [(m + n + 1) // 2 * 2 for m, n in zip(f.shape, g.shape)]
    f, g = f * mask_f, g * mask_g
    front = torch.fft.rfftn(torch.stack([f, f * f, mask_f]), s=size).conj()
    back = torch.fft.rfftn(torch.stack([g, g * g, mask_g]), s=size)
    pairs = torch.stack([front[i] * back[j] for i, j in ((0, 0), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2))])
    product, sum_f, sum_g, square_f, square_g, count = torch.fft.irfftn(pairs, s=size)
    count = count.clamp_min(1e-3)
    spread_f, spread_g = square_f - sum_f**2 / count, square_g - sum_g**2 / count
    scale = (spread_f.clamp_min(0) * spread_g.clamp_min(0)).sqrt()
    share = count / min(float(mask_f.sum()), float(mask_g.sum()))
    score = (product - sum_f * sum_g / count) / scale.clamp_min(1e-3) * share.clamp(0, 1).sqrt()
    return torch.where((share >= SHARE) & (scale > 1e-3), score, torch.full_like(score, -1.0))
