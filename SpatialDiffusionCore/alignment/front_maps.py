"""Finding the pose of two scans of an eye: as maps seen from the front first, then in depth.

Eyes are scanned from the front, so two scans differ by a turn about the depth axis, a lateral shift, a little scale,
an axial offset and tilts of a few degrees. In three dimensions all layers of a retina look alike whatever the turn. Two
maps do not: the mean along depth, which shows vessels (in OCT by their shadows), and the depth of the tissue's middle,
which shows them, too, and does not depend on brightness. Maps are compared at every turn and every shift at once
(normalized correlation by Fourier transforms; Padfield, IEEE TIP 21(5):2706, 2012), and a plane fitted to the
difference of the two surfaces gives tilt and offset.

The cubes' axes are (lateral, depth, lateral); see sampling.scan_axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..networks.front import maps_of
from ..spatial import geometry
from ..spatial.cube import Cube
from ..spatial.volume import Grid
from . import gauss_newton, self_similarity
from .gauss_newton import Side

#: Degrees between the turns that are compared: a step moves the rim of a 6 mm map by 0.2 mm, about a vessel.
STEP = 4.0

#: Least share of the smaller map that two maps must have in common.
OVERLAP = 0.25

#: Pixels of a map per lateral voxel of the cube.
FINER = 1.5

#: Scales of the moving map that are compared.
SCALES = (0.95, 1.0, 1.05)

#: Pixels (RMS) between poses that count as two.
APART = 3

#: The plane that takes one surface to the other: fewest places it is fitted to, rounds, the median residuals at which a
#: place counts half (Cauchy), and what tilts cost, per place. Chosen, untested.
FEWEST, ROUNDS, WIDTH, TILT = 30, 8, 2, 1e-3


@dataclass(frozen=True)
class Face:
    """A scan seen from the front on N×N pixels of ``step`` mm about the cube's center; first index along D, second W.

    maps: 2×N×N, mean along depth and depth of the tissue's middle, both with shading and what belongs to single scan
    lines removed, of local deviation 1, 0 outside ``mask``. height: mm along depth of that middle, where ``known``.
    """

    maps: torch.Tensor
    mask: torch.Tensor
    height: torch.Tensor
    known: torch.Tensor
    step: float


def _maps(cube: Cube) -> Iterator[torch.Tensor]:
    """maps_of a cube."""
    return (part[0] for part in maps_of(cube.values[0], cube.support[0], float(cube.spacing[1])))


def _finer(grid: Grid, factor: float) -> Grid:
    """The grid with ``factor`` times the lateral voxels."""
    return grid.with_shape([n if axis == 1 else int(round(n * factor)) for axis, n in enumerate(grid.shape)])


def face(cube: Cube) -> Face:
    """The Face of a cube."""
    fine = cube.on(_finer(cube.grid, FINER))
    maps, mask, height, known = _maps(fine)
    a, _, b = fine.spacing
    step = float(min(a, b))
    count = int(np.ceil(max(n * s for n, s in zip(mask.shape, (a, b))) / step))
    theta = torch.tensor(
        [[count * step / (b * mask.shape[1]), 0, 0], [0, count * step / (a * mask.shape[0]), 0]],
        dtype=torch.float32,
        device=mask.device,
    )[None]
    grid = F.affine_grid(theta, [1, 1, count, count], align_corners=False)
    planes = F.grid_sample(torch.stack([*maps, mask, height, known])[None], grid, align_corners=False)[0]
    mask, known = (planes[2] > 0.5).float(), (planes[4] > 0.99).float()
    return Face(planes[:2] * mask, mask, planes[3], known, step)


def poses(moving: Cube, fixed: Cube, keep: int) -> list:
    """Up to ``keep`` distinct fixed → moving cube-frame transforms (4×4 float64), the most promising first."""
    a, b = face(fixed), face(moving)
    found = _turns_and_shifts(a, b)
    radius = a.step * len(a.mask) / 4
    chosen: list[tuple] = []
    for score, angle, scale, shift in found:
        lateral = _lateral(angle, scale, shift)
        if all(_apart(lateral, other, radius) > APART * a.step for _, other in chosen):
            chosen.append((score, lateral))
        if len(chosen) == keep:
            break
    return [_in_depth(a, b, lateral) for _, lateral in chosen]


def _lateral(angle: float, scale: float, shift: np.ndarray) -> np.ndarray:
    """2×3 map of fixed to moving (D, W) in mm: u → scale·R(u + shift)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    linear = scale * np.array([[cosine, -sine], [sine, cosine]])
    return np.column_stack([linear, linear @ shift])


def _apart(p: np.ndarray, q: np.ndarray, radius: float) -> float:
    """RMS distance in mm of two lateral maps over a disk of that RMS radius."""
    d = p - q
    return np.sqrt((d[:, 2] ** 2).sum() + radius**2 / 2 * (d[:, :2] ** 2).sum())


def _turns_and_shifts(a: Face, b: Face) -> list[tuple[float, float, float, np.ndarray]]:
    """[(score, angle, scale, shift)], best first: the best shift of every turn and scale."""
    count, device = len(a.mask), a.mask.device
    size = 2 * max(count, len(b.mask))
    ratio = count * a.step / (len(b.mask) * b.step)
    angles = np.radians(np.arange(0, 360, STEP))
    found = []
    front = torch.fft.rfft2(torch.cat([a.maps, a.maps**2, a.mask[None]]), s=(size, size)).conj()
    for scale in SCALES:
        for angle in angles:
            cosine, sine = scale * ratio * np.cos(angle), scale * ratio * np.sin(angle)
            # grid_sample's x is the second index (W), y the first (D).
            theta = torch.tensor([[cosine, sine, 0], [-sine, cosine, 0]], dtype=torch.float32, device=device)
            grid = F.affine_grid(theta[None], [1, 1, count, count], align_corners=False)
            turned = F.grid_sample(torch.cat([b.maps, b.mask[None]])[None], grid, align_corners=False)[0]
            back = torch.fft.rfft2(torch.cat([turned[:2], turned[:2] ** 2, turned[2:]]), s=(size, size))
            pairs = torch.cat(
                [front[:2] * back[:2], front[2:4] * back[4:], front[4:] * back[2:4], front[4:] * back[4:]]
            )
            p0, p1, e0, e1, f0, f1, overlap = torch.fft.irfft2(pairs, s=(size, size))
            share = overlap / min(float(a.mask.sum()), float(turned[2].sum()))
            score = sum(
                p / (e.clamp_min(0) * f.clamp_min(0)).clamp_min(1e-6).sqrt() for p, e, f in ((p0, e0, f0), (p1, e1, f1))
            )
            score = torch.where(share >= OVERLAP, score * share.clamp(0, 1).sqrt(), torch.full_like(score, -1.0))
            value, place = score.flatten().max(0)
            shift = np.array([(n + size // 2) % size - size // 2 for n in divmod(int(place), size)]) * a.step
            found.append((float(value), float(angle), scale, shift))
    return sorted(found, key=lambda entry: -entry[0])


def _in_depth(a: Face, b: Face, lateral: np.ndarray) -> np.ndarray:
    """4×4 frame transform: the lateral map, and the robust plane that takes a's surface to b's."""
    at = a.known.nonzero()
    u = (at.cpu().double().numpy() - (len(a.mask) - 1) / 2) * a.step
    v = u @ lateral[:, :2].T + lateral[:, 2]
    place = torch.as_tensor(v / (len(b.mask) * b.step / 2), dtype=torch.float32, device=at.device).flip(1)
    seen = F.grid_sample(torch.stack([b.height * b.known, b.known])[None], place[None, None], align_corners=False)
    height, known = seen[0, :, 0].cpu().double().numpy()
    use = known > 0.99
    plane = np.zeros(3)
    if use.sum() > FEWEST:
        difference = height[use] - a.height[a.known > 0].cpu().double().numpy()[use]
        terms = np.column_stack([np.ones(use.sum()), u[use]])
        weights, plane[0] = np.ones(len(terms)), np.median(difference)
        for _ in range(ROUNDS):
            residual = difference - terms @ plane
            weights = 1 / (1 + (residual / (1e-6 + WIDTH * np.median(np.abs(residual)))) ** 2)
            normal = (terms * weights[:, None]).T @ terms + np.diag([0, 1, 1]) * TILT * len(terms)
            plane = np.linalg.solve(normal, terms.T @ (weights * difference))
    matrix = np.eye(4)
    for row, (first, second, offset) in ((0, lateral[0]), (2, lateral[1])):
        matrix[row] = [first, 0, second, offset]
    matrix[1] = [plane[1], 1, plane[2], plane[0]]
    return matrix


#: Pixels of the refinement's maps per lateral voxel of the cube, and points drawn on them.
FINEST, POINTS = 2.0, 8000


def refine(moving: Cube, fixed: Cube, world: np.ndarray, *, seed: int) -> np.ndarray:
    """Refine a fixed → moving RAS transform (4×4) of two cubes: laterally on their maps, in depth by self-similarity.

    Layers say little about lateral shifts: on ten phantom pairs of OCT with motion and shadows, self-similarity in all
    directions left a median lateral error of 51 µm, the maps 16 µm.
    """
    sides = [_side(cube, seed) for cube in (fixed, moving)]
    world = _laterally(moving, fixed, world, sides)
    factor, sigma, iterations = self_similarity.LEVELS[-1]
    refined = self_similarity.polish_level(
        moving, fixed, world, "affine", seed, factor, sigma, iterations, stiffness=0.0
    )
    change = np.linalg.inv(fixed.frame) @ np.linalg.inv(world) @ refined @ fixed.frame
    change[[0, 2]] = np.eye(4)[[0, 2]]
    return _laterally(moving, fixed, world @ fixed.frame @ change @ np.linalg.inv(fixed.frame), sides)


def shifted(moving: Cube, fixed: Cube, world: np.ndarray, *, seed: int) -> np.ndarray:
    """``world`` turned and shifted laterally to where the maps agree best; its scales and shears stay."""
    return _laterally(moving, fixed, world, [_side(cube, seed) for cube in (fixed, moving)], kind="rigid")


def agreement(moving: Cube, fixed: Cube, worlds: Sequence[np.ndarray], *, seed: int) -> np.ndarray:
    """Correlation of the maps of two cubes under fixed → moving RAS transforms, times the root of their overlap.

    It judges a refinement: a lateral step of a voxel hardly changes local similarity, which layers dominate; that of
    the true transform of a phantom pair was even below that of a start 49 µm off.
    """
    a, b = (_side(cube, seed) for cube in (fixed, moving))
    flat = np.array([_flat(np.linalg.inv(moving.frame) @ world @ fixed.frame) for world in worlds])
    similarity, overlap = gauss_newton.correlation(a, b, flat)
    return similarity * np.sqrt(overlap.clip(0, 1))


def _flat(matrix: np.ndarray) -> np.ndarray:
    """The lateral part of a cube-frame transform, 4×4."""
    result = np.eye(4)
    result[np.ix_([0, 2], [0, 2, 3])] = matrix[np.ix_([0, 2], [0, 2, 3])]
    return result


def _side(cube: Cube, seed: int) -> Side:
    """A cube's maps as a Side of Gauss–Newton, in the cube's frame.

    Three equal layers make a volume of a map; points lie in the middle one, and no slope leads out of it.
    """
    fine = cube.on(_finer(cube.grid, FINEST))
    maps, mask, _, _ = _maps(fine)
    support = torch.stack([mask] * 3, 1)[None, None]
    middle = support * torch.tensor([0.0, 1.0, 0.0], device=mask.device)[:, None]
    spacing = (fine.spacing[0], 1.0, fine.spacing[2])
    return gauss_newton.side(torch.stack([maps] * 3, 2)[None], support, middle, spacing, POINTS, seed)


def _laterally(moving: Cube, fixed: Cube, world: np.ndarray, sides: Sequence[Side], kind: str = "affine") -> np.ndarray:
    """Robust Gauss–Newton fit of two maps to each other by changes of a kind; what ``world`` does in depth stays."""
    matrix = np.linalg.inv(moving.frame) @ world @ fixed.frame
    found = gauss_newton.refine(
        sides[0],
        sides[1],
        _flat(matrix)[None],
        kind=kind,
        iterations=12,
        linear_fit=False,
        longest=float(fixed.spacing.max()),
    )[0]
    matrix[np.ix_([0, 2], [0, 2, 3])] = found[np.ix_([0, 2], [0, 2, 3])]
    return moving.frame @ matrix @ np.linalg.inv(fixed.frame)


def spread(
    moving: Cube, fixed: Cube, world: np.ndarray, *, seed: int, degrees: float = 3.0, voxels: float = 2.0
) -> float:
    """RMS distance in mm over the maps between the answer and fits of the maps from turned and shifted starts.

    world: fixed → moving, 4×4, RAS mm. voxels: shift of the starts in lateral voxels of the cube.
    """
    sides = [_side(cube, seed) for cube in (fixed, moving)]
    points = sides[0].points.cpu().double().numpy()
    mean, covariance = points.mean(0), np.cov(points.T, bias=True)
    flat = _flat(np.linalg.inv(moving.frame) @ world @ fixed.frame)
    starts, millimeters = [flat], voxels * float(max(fixed.spacing))
    for sign in (-1, 1):
        turn = geometry.rotation_about([0, 1, 0], np.radians(sign * degrees))
        starts += [
            flat @ geometry.about(turn, mean),
            flat @ geometry.from_parts(np.eye(3), [sign * millimeters, 0, 0]),
            flat @ geometry.from_parts(np.eye(3), [0, 0, sign * millimeters]),
        ]
    found = gauss_newton.refine(sides[0], sides[1], starts, iterations=12, linear_fit=False, longest=millimeters)
    distances = [geometry.displacement_rms(m, found[0], mean, covariance) for m in found[1:]]
    return float(np.sqrt(np.mean(np.square(distances))))
