"""Poses of volumes that show different parts of a body: all rotations at every shift of the whole volumes.

Rotations are tried from coarse to fine: 240 that cover them all, then those about the best of them, twice. Each is
compared with the other volume at every shift at once, by fast Fourier transforms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..heartbeat import beat
from ..networks import layers
from ..spatial import geometry
from ..spatial.cube import Cube
from ..spatial.volume import Grid
from .pose_search import BASIN, TURN_AXIS, edge_strength

#: mm between the voxels on which whole volumes are compared at every shift, for the first rotations and for those about
#: the best; and the most voxels along an axis. At 12 mm the truth of 15 of 24 cropped or inverted organs was not among
#: the found, at 8 of 5 (NOTES, "Every rotation at every shift").
FIRST_STEP, STEP, LONGEST = 10.0, 8.0, 44

#: Least share of the smaller volume that must lie inside the other.
SHARE = 0.25

#: Degrees of the turns about the best rotations, and about how many of them, level by level.
LEVELS = ((18.0, 10), (9.0, 6))

#: Shifts that are kept of one rotation.
PEAKS = 2


class Look(NamedTuple):
    """One way to compare whole volumes over their common field of view: by intensities, or by edges."""

    edges: bool


#: Edges find parts and inverted contrasts, intensities smooth organs. Over the field of view, so that what has nothing
#: opposite counts against a pose.
LOOKS = (Look(False), Look(True))


def wide_poses(moving: Cube, fixed: Cube, keep: int) -> Iterator[list[list[np.ndarray]]]:
    """Poses (fixed → moving, 4×4, RAS mm) for volumes that show different parts of a body, no two in one basin.

    For each look the ``keep`` best, best first. Yields what there is after each part of the work, so that it can be
    stopped; the last list is the answer.
    """
    done: list[list[np.ndarray]] = []
    boxes = [_tissue_box(cube, _whole(cube)) for cube in (fixed, moving)]
    # One step for both: in the voxels of a finer one the coarser would be a large volume.
    largest = max(float((box.high - box.low).max()) for box in boxes) / LONGEST
    for look in LOOKS:
        found: list[tuple[float, np.ndarray]] = []
        first: list[tuple[float, np.ndarray]] = []
        views: dict[float, tuple[Overview, ...]] = {}
        for level, rotations in enumerate(_levels(first, found)):
            step = max(STEP if level else FIRST_STEP, largest)
            if step not in views:
                views[step] = tuple(Overview.of(cube, box, look, step) for cube, box in zip((fixed, moving), boxes))
            stays, moves = views[step]
            for start in range(0, len(rotations), 12):
                part = _at_every_shift(stays, moves, rotations[start : start + 12])
                (found if level else first).extend(part)
                yield done
        done = [*done, _basins(found or first, fixed, keep)]
    yield done


def _levels(first: list, found: list) -> Iterator[np.ndarray]:
    """The rotations to try (N×3×3), level by level; to ``first`` the caller adds what the first of them found, to
    ``found`` what the others did: [(correlation, transform)].
    """
    yield _first_rotations()
    for degrees, count in LEVELS:
        best: list[np.ndarray] = []
        for _, world in sorted(found or first, key=lambda pair: -pair[0]):
            if all(geometry.rotation_angle(world[:3, :3] @ other.T) > 0.9 * degrees for other in best):
                best.append(world[:3, :3])
            if len(best) == count:
                break
        if not best:
            return
        turns = [np.eye(3), *(geometry.rotation_about(axis, np.radians(degrees)) for axis in _axes())]
        yield np.array([rotation @ turn for rotation in best for turn in turns])


#: Axes about which the sixty rotations are turned by 36° for the first level, beside the sixty themselves: TURN_AXIS
#: and two others that are none of the icosahedron's.
TURN_AXES = (TURN_AXIS, (0.8, 0.36, -0.48), (-0.48, 0.8, 0.36))


@lru_cache(maxsize=1)
def _first_rotations() -> np.ndarray:
    sixty = geometry.rotation_group()
    turns = [geometry.rotation_about(axis, np.radians(36.0)) for axis in TURN_AXES]
    return np.concatenate([sixty, *(sixty @ turn for turn in turns)])


@lru_cache(maxsize=1)
def _axes() -> np.ndarray:
    """The twelve corners of an icosahedron, 12×3, of length 1."""
    golden = (1 + 5**0.5) / 2
    corners = np.array([[0, a, b * golden] for a in (1, -1) for b in (1, -1)])
    corners = np.concatenate([np.roll(corners, shift, axis=1) for shift in range(3)])
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)


def _basins(found: list[tuple[float, np.ndarray]], fixed: Cube, keep: int) -> list[np.ndarray]:
    """The ``keep`` best transforms, those in one basin as one."""
    prepared = fixed.prepared
    chosen: list[np.ndarray] = []
    for _, world in sorted(found, key=lambda pair: -pair[0]):
        apart = (
            geometry.displacement_rms(world, other, prepared.tissue_center, prepared.tissue_covariance)
            for other in chosen
        )
        if all(distance > BASIN * prepared.size for distance in apart):
            chosen.append(world)
        if len(chosen) == keep:
            break
    return chosen


@dataclass(frozen=True)
class Overview:
    """All of a volume's tissue at low resolution: values and the mask within which they count (D×H×W), the 4×4
    voxel → RAS matrix, and Fourier transforms that were needed already.
    """

    values: torch.Tensor
    mask: torch.Tensor
    voxel_to_ras: np.ndarray
    known: dict[tuple, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cube: Cube, box: Box, look: Look, step: float) -> Overview:
        """What of a cube's volume lies in a box, also outside the cube; step: mm between voxels."""
        fine = cube.on(_grid(box, step / 2, even=True))
        values = edge_strength(layers.blur(fine.values, 0.7)) * fine.support if look.edges else fine.values
        values, mask = (F.avg_pool3d(v, 2)[0, 0] for v in (values, fine.support))
        to_ras = fine.grid.voxel_to_ras @ geometry.from_parts(2 * np.eye(3), np.full(3, 0.5))
        return cls(values, (mask > 0.5).to(values.dtype), to_ras)

    def transformed(self, size: tuple[int, ...]) -> torch.Tensor:
        """Conjugate Fourier transforms of the masked values, of their squares and of the mask, in a box of a size."""
        if size not in self.known:
            values = self.values * self.mask
            self.known[size] = torch.fft.rfftn(torch.stack([values, values * values, self.mask]), s=size).conj()
        return self.known[size]


class Box(NamedTuple):
    """A box along axes (3×3, columns of length 1): its lowest and highest corner in their coordinates, mm."""

    axes: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _whole(cube: Cube) -> Box:
    """The box around a cube's whole volume, along the cube's axes."""
    axes = cube.grid.voxel_to_ras[:3, :3] / cube.spacing
    volume = cube.prepared.volume
    corners = np.array(list(np.ndindex(2, 2, 2))) * np.array(volume.shape) - 0.5
    corners = geometry.transform_points(volume.voxel_to_ras, corners) @ axes
    return Box(axes, corners.min(0), corners.max(0))


def _tissue_box(cube: Cube, box: Box) -> Box:
    """What of a box holds tissue, a voxel of the overview wider; the box itself where nothing does."""
    grid = _grid(box, max(STEP, float((box.high - box.low).max()) / LONGEST))
    inside = cube.on(grid).tissue[0, 0].nonzero()
    if not len(inside):
        return box
    step = float(geometry.spacing(grid.voxel_to_ras)[0])
    start = grid.voxel_to_ras[:3, 3] @ box.axes
    low = start + step * (inside.amin(0).cpu().numpy() - 1.0)
    high = start + step * (inside.amax(0).cpu().numpy() + 1.0)
    return Box(box.axes, np.maximum(low, box.low), np.minimum(high, box.high))


def _grid(box: Box, step: float, even: bool = False) -> Grid:
    """Voxels of ``step`` mm that fill a box; even: so many along each axis."""
    shape = np.ceil((box.high - box.low) / step).astype(int).clip(2)
    shape += shape % 2 if even else 0
    first = (box.low + box.high) / 2 - (shape - 1) / 2 * step
    return Grid(tuple(int(n) for n in shape), geometry.from_parts(box.axes * step, box.axes @ first))


def _at_every_shift(fixed: Overview, moving: Overview, rotations: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """[(correlation, fixed → moving, 4×4, RAS mm)]: the best shifts of each of N×3×3 rotations."""
    both = torch.stack([moving.values, moving.mask])[None]
    extent = np.array(moving.values.shape)
    center = geometry.transform_points(moving.voxel_to_ras, (extent[None] - 1) / 2)[0]
    from_ras = np.linalg.inv(moving.voxel_to_ras @ geometry.normalized_to_voxel(both.shape[2:]))
    back = np.linalg.inv(fixed.voxel_to_ras)
    found = []
    for rotation in rotations:
        beat()
        turned = rotation @ fixed.voxel_to_ras[:3, :3]
        # The box around the turned volume in the other one's voxels.
        into = np.linalg.inv(turned) @ moving.voxel_to_ras[:3, :3]
        shape = tuple(int(n) for n in np.ceil(np.abs(into) @ extent).clip(1))
        to_ras = geometry.from_parts(turned, center - turned @ ((np.array(shape) - 1) / 2))
        theta = torch.as_tensor(
            (from_ras @ to_ras @ geometry.normalized_to_voxel(shape))[None, :3],
            dtype=torch.float32,
            device=both.device,
        )
        grid = F.affine_grid(theta, [1, 1, *shape], align_corners=False)
        values, mask = F.grid_sample(both, grid, align_corners=False)[0]
        score = masked_correlation(fixed, values, (mask > 0.5).to(values.dtype))
        for value, shift in _peaks(score, fixed.values.shape, shape):
            found.append((value, to_ras @ geometry.from_parts(np.eye(3), shift) @ back))
    return found


def _peaks(score: torch.Tensor, fixed: Sequence[int], moving: Sequence[int]) -> list[tuple[float, np.ndarray]]:
    """[(value, shift in voxels)] of the largest values of a correlation of two volumes of these shapes, more than two
    voxels apart; ``score`` is used up.
    """
    size, found = np.array(score.shape), []
    for _ in range(PEAKS):
        place = int(score.argmax())
        at = np.array(np.unravel_index(place, tuple(size)))
        value = float(score.flatten()[place])
        # Negative shifts are at the end of each axis: of the two that a place may mean, the one that shares more.
        shift = np.where(2 * at > size + moving - np.array(fixed), at - size, at)
        found.append((value, shift.astype(float)))
        around = [torch.as_tensor(np.arange(n - 2, n + 3) % count) for n, count in zip(at, size)]
        score[torch.meshgrid(*around, indexing="ij")] = -1.0
    return [(value, shift) for value, shift in found if value > -1.0]


@lru_cache(maxsize=512)
def _transform_length(first: int, second: int) -> int:
    """Along one axis: long enough that shifts which share more than a SHARE of the smaller one are not mixed with
    others, and a product of 2, 3 and 5, which transforms fast.
    """
    least = first + second - int(SHARE / 2 * min(first, second))
    return next(n for n in range(least + least % 2, 4 * least + 4, 2) if _is_smooth(n))


def _is_smooth(number: int) -> bool:
    for prime in (2, 3, 5):
        while number % prime == 0:
            number //= prime
    return number == 1


def masked_correlation(fixed: Overview, values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Correlation over the voxels known in both volumes, at every shift s that pairs fixed[x] with values[x + s].

    values, mask: D×H×W (the fixed volume may differ in size); negative shifts are at the end of each axis. Multiplied
    by the root of the share of the smaller mask that overlaps; -1 where that is less than SHARE. Padfield, IEEE TIP
    21(5):2706, 2012.
    """
    size = tuple(_transform_length(m, n) for m, n in zip(fixed.values.shape, values.shape))
    values = values * mask
    front = fixed.transformed(size)
    back = torch.fft.rfftn(torch.stack([values, values * values, mask]), s=size)
    pairs = torch.stack([front[i] * back[j] for i, j in ((0, 0), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2))])
    product, sum_f, sum_g, square_f, square_g, count = torch.fft.irfftn(pairs, s=size)
    count = count.clamp_min(1e-3)
    spread_f, spread_g = square_f - sum_f**2 / count, square_g - sum_g**2 / count
    scale = (spread_f.clamp_min(0) * spread_g.clamp_min(0)).sqrt()
    share = count / max(min(float(fixed.mask.sum()), float(mask.sum())), 1e-3)
    score = (product - sum_f * sum_g / count) / scale.clamp_min(1e-3) * share.clamp(0, 1).sqrt()
    return torch.where((share >= SHARE) & (scale > 1e-3), score, torch.full_like(score, -1.0))
