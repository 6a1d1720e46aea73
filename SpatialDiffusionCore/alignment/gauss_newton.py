"""Local refinement of a transform by intensities: robust, symmetric Gauss–Newton on 6, 7 or 12 numbers.

Everything here happens in *cube frames*: u and v are mm along the axes (i, j, k) of the fixed and the moving cube,
from their centers. A transform is a 4×4 matrix with v = A·u + d; batches are B×4×4 float64 arrays.

Volumes and points are on the device. The algebra of a dozen numbers is NumPy's: on a GPU each of its hundred small
steps would cost as much as a look at all points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from ..heartbeat import beat


@dataclass
class Side:
    """One volume at one resolution: its features, and points drawn in its tissue.

    grid: 1×(C+1)×D×H×W, C features, then the support (0…1). spacing: array of 3, mm. points: N×3 mm on voxel centers
    in the tissue; values: C×N there; slopes: C×N×3, how the features change there per mm.
    """

    grid: torch.Tensor
    spacing: np.ndarray
    points: torch.Tensor
    values: torch.Tensor
    slopes: torch.Tensor

    @cached_property
    def powers(self) -> torch.Tensor:
        """C×N×3: 1, the values, and their squares."""
        return torch.stack([torch.ones_like(self.values), self.values, self.values.square()], dim=-1)

    def seen(self, points: torch.Tensor, matrices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (C×B×N) and support (B×N), trilinear, where B matrices (4×4) take N×3 points in mm."""
        # From mm to normalized (x, y, z), whose x runs along the last axis.
        scale = 2 / (self.spacing * self.grid.shape[2:])
        scaled = np.ascontiguousarray((matrices[:, :3] * scale[:, None])[:, ::-1], np.float32)
        rows = torch.as_tensor(scaled, device=points.device)
        place = torch.baddbmm(rows[:, :, 3:], rows[:, :, :3], points.T[None].expand(len(rows), -1, -1))  # B×3×N
        sampled = F.grid_sample(self.grid, place.mT[None, :, :, None], align_corners=False)[0, ..., 0]
        return sampled[:-1], sampled[-1]


def side(
    features: torch.Tensor,
    support: torch.Tensor,
    tissue: torch.Tensor,
    spacing: Sequence[float] | np.ndarray,
    count: int,
    seed: int,
) -> Side:
    """Make a Side from 1×C×D×H×W features, 1×1×D×H×W support and tissue (> 0.5 = draw points here).

    ``count`` points are drawn without repetition (all if there are fewer); the same seed draws the same points.
    """
    device, shape = features.device, np.array(features.shape[2:])
    inside = (tissue[0, 0] > 0.5).nonzero()
    if len(inside) > count:
        chosen = torch.randperm(len(inside), generator=torch.Generator().manual_seed(seed))[:count]
        inside = inside[chosen.sort().values.to(device)]
    spacing = np.array(spacing, float)
    numbers = ((shape - 1) / 2).astype(np.float32), shape - 1, np.array([shape[1] * shape[2], shape[2], 1])
    middle, last, strides, step = (
        torch.as_tensor(each, device=device) for each in (*numbers, spacing.astype(np.float32))
    )
    points = (inside - middle) * step
    flat, index = features[0].flatten(1), (inside * strides).sum(1)
    # The neighbors on both sides along each axis, N×3; at an edge the point itself is one of them.
    before, after = (inside > 0).long(), (inside < last).long()
    low, high = (flat[:, index[:, None] + part] for part in (-before * strides, after * strides))
    slopes = (high - low) / ((before + after).clamp_min(1) * step)
    grid = torch.cat([features, support], dim=1)
    return Side(grid, spacing, points, flat.index_select(1, index), slopes)


@lru_cache(maxsize=3)
def _basis(kind: str) -> np.ndarray:
    """12×n: the generators of a kind of transform, each a 3×4 matrix row by row."""
    if kind == "affine":
        return np.eye(12)
    generators = np.zeros((6 if kind == "rigid" else 7, 3, 4))
    for k in range(3):
        i, j = (k + 1) % 3, (k + 2) % 3
        generators[k, i, j], generators[k, j, i] = -1.0, 1.0
        generators[-1 - k, k, 3] = 1.0
    if kind == "similarity":
        generators[3, :, :3] = np.eye(3)
    return generators.reshape(-1, 12).T


def _stretch() -> np.ndarray:
    """12×12: projects a change (3×4, row by row) to the symmetric part of its linear part."""
    projection = np.zeros((3, 4, 3, 4))
    for i in range(3):
        for j in range(3):
            projection[i, j, i, j] += 0.5
            projection[i, j, j, i] += 0.5
    return projection.reshape(12, 12)


_STRETCH = _stretch()


def _transposed(matrices: np.ndarray) -> np.ndarray:
    return matrices.swapaxes(-1, -2)


def _apply(matrices: np.ndarray, change: np.ndarray, kind: str) -> np.ndarray:
    """The transforms after a step (B×3×4, in the fixed frame); a rigid one stays rigid."""
    step = np.zeros_like(matrices)
    step[:, :3] = change
    if kind != "affine":
        return matrices @ _exponential(step)
    return matrices + matrices @ step


def _exponential(step: np.ndarray) -> np.ndarray:
    """Matrix exponential of B×4×4 steps (at most some tenths): Taylor series, scaled and squared.

    scipy.linalg.expm takes one matrix after the other.
    """
    part = power = step / 16
    result = np.eye(4) + part
    for order in range(2, 8):
        power = power @ part / order
        result = result + power
    for _ in range(4):
        result = result @ result
    return result


#: Rows and columns of the upper triangles of symmetric 3×3 and 4×4 matrices.
_UPPER = {n: np.triu_indices(n) for n in (3, 4)}


def _unfolding() -> np.ndarray:
    """144 places where the entries of a 12×12 matrix with symmetric blocks lie among the 6·10 of both triangles."""
    place = {n: np.zeros((n, n), int) for n in (3, 4)}
    for n, found in place.items():
        found[_UPPER[n]] = found.T[_UPPER[n]] = np.arange(len(_UPPER[n][0]))
    i, a = np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3)
    return (10 * place[3][i[:, None], i] + place[4][a[:, None], a]).flatten()


_UNFOLDING = _unfolding()


class _Linear:
    """How a side's features at its points change with 12 numbers: made once, used in every iteration.

    The gradient is that of the side the points belong to, where they lie, not of the one they are seen in (inverse
    compositional; Baker and Matthews, IJCV 56:221, 2004), so it does not change while the transform does.
    """

    def __init__(self, side: Side) -> None:
        count = len(side.points)
        place = torch.cat([side.points, side.points.new_ones(count, 1)], dim=1)
        self.jacobian = (side.slopes[..., None] * place[:, None, :]).flatten(2)  # C×N×12
        squares = torch.einsum("cni,cnj->nij", side.slopes, side.slopes)
        squares, outer = squares[:, _UPPER[3][0], _UPPER[3][1]], (place[:, _UPPER[4][0]] * place[:, _UPPER[4][1]])
        self.products = (squares[:, :, None] * outer[:, None]).flatten(1)  # N×60

    def equations(self, residual: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """B×72 for C×B×N residuals and B×N weights: Σ w J Jᵀ, folded, and Σ w J r; see ``_unfolded``."""
        return torch.cat([weights @ self.products, torch.bmm(residual * weights, self.jacobian).sum(0)], dim=1)


def _unfolded(equations: np.ndarray) -> tuple:
    """(Σ w J Jᵀ, B×12×12, and Σ w J r, B×12)."""
    return equations[:, _UNFOLDING].reshape(-1, 12, 12), equations[:, 60:]


def _fit_intensity(
    sampled: torch.Tensor, powers: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per transform and channel (C×B×1), gain and offset that make values like ``sampled`` (C×B×N); C×N×3 ``powers``:
    1, the values, their squares.
    """
    total, sum_v, square_v = (weights @ powers).split(1, dim=2)
    total = total.clamp_min(1e-6)
    sum_s, product = ((weights * sampled) @ powers[..., :2]).split(1, dim=2)
    mean_v = sum_v / total
    gain = (product - mean_v * sum_s) / (square_v - mean_v * sum_v).clamp_min(1e-9 * total)
    return gain, sum_s / total - gain * mean_v


def _residuals(
    source: Side, target: Side, matrix: np.ndarray, linear_fit: bool, tuning: float, chosen: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residuals (C×B×N) and weights (B×N) of points of ``source`` that ``matrix`` (B×4×4) takes into ``target``.

    chosen: which points count in each transform, B×N of 0 and 1 (default: all)."""
    sampled, support = target.seen(source.points, matrix)
    if chosen is not None:
        support = support * chosen
    if linear_fit:
        gain, offset = _fit_intensity(sampled, source.powers, support)
        # In units of the source, whose gradients they are compared with.
        residual = (sampled - offset) / gain.abs().clamp_min(1e-3).copysign(gain) - source.values[:, None]
    else:
        residual = sampled - source.values[:, None]
    # Cauchy weights; the scale is the median squared residual, so half the points count fully. A quarter of the points
    # tells it: medians are slow.
    squared = residual.square().mean(0)
    scale = squared[:, ::4].masked_fill(support[:, ::4] <= 0.5, float("nan")).nanmedian(dim=1, keepdim=True).values
    scale = scale.nan_to_num(1.0).clamp_min(1e-8)
    weights = support / torch.add(scale, squared, alpha=1 / tuning**2)
    # One number per direction makes them weigh alike whatever their contrast.
    return residual, weights / (scale * weights.sum(1, keepdim=True)).clamp_min(1e-6)


def _factor(
    hessian: np.ndarray, previous: np.ndarray, newton: np.ndarray, factor: np.ndarray, most: float
) -> np.ndarray:
    """The multiple (B) of the next Gauss–Newton step, from the last step's (B×n), the multiple taken, and this one.

    Two people's gradients agree in part only, the less the finer the voxels, so the steps fall short, by about the
    same share each time (Barzilai and Borwein, IMA J. Numer. Anal. 8:141, 1988, in the metric of the Hessian).
    """
    weighed = (hessian @ previous[..., None])[..., 0]
    whole, gained = (previous * weighed).sum(1), ((previous - newton) * weighed).sum(1)
    return np.where(gained > 0, factor * whole / np.maximum(gained, 1e-30), most).clip(1.0, most)


def _together(both: tuple, matrices: np.ndarray, inverses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hessian (B×12×12) and slope (B×12) of the equations of both directions, for changes in the fixed frame."""
    (hessian, slope), (back, back_slope) = map(_unfolded, torch.stack(both).cpu().double().numpy())
    # A change Y in the fixed frame, M·(I + Y), is M·Y·M⁻¹ in the moving one, and there it moves points back.
    across = (matrices[:, :3, None, :3, None] * _transposed(inverses)[:, None, :, None]).reshape(-1, 12, 12)
    return hessian + _transposed(across) @ back @ across, slope - (back_slope[:, None] @ across)[:, 0]


def _strain_slope(matrices: np.ndarray, already: np.ndarray | None, free: float) -> np.ndarray:
    """Half the slope (B×12) of the squared logarithmic strain of B×4×4 matrices, after ``already`` (3×3), beyond
    ``free`` along each axis.

    Residuals come in units of their median, so this holds for any volumes: E + stiffness·F·|log(CᵀC)/2|², whose slope
    in Y, with C·(I + Y), is twice that logarithm. It is the same for a transform and its inverse.
    """
    linear = matrices[:, :3, :3] if already is None else already @ matrices[:, :3, :3]
    squares, axes = np.linalg.eigh(_transposed(linear) @ linear)
    stretches = np.log(np.maximum(squares, 1e-6)) / 2
    strain = (axes * (stretches - stretches.clip(-free, free))[:, None]) @ _transposed(axes)
    return np.pad(strain, ((0, 0), (0, 0), (0, 1))).reshape(-1, 12)


def refine(
    fixed: Side,
    moving: Side,
    matrices: Sequence[np.ndarray] | np.ndarray,
    *,
    kind: str = "affine",
    iterations: int = 10,
    linear_fit: bool = True,
    tuning: float = 2.0,
    damping: float = 1e-3,
    longest: float = 15.0,
    enough: float = 0.02,
    boldest: float = 1.0,
    stiffness: float = 0.0,
    free: float = 0.0,
    already: np.ndarray | None = None,
    chosen: Sequence[torch.Tensor | None] = (None, None),
) -> np.ndarray:
    """Improve B transforms (B×4×4, fixed → moving cube frame) by symmetric robust Gauss–Newton.

    Minimizes the weighted squared differences of fixed points seen in the moving volume and of moving points seen in
    the fixed one, after a linear intensity fit of each. ``longest``: mm that a point near the rim moves at most per
    iteration; when none moves more than ``enough`` voxels, it ends. ``boldest``: largest multiple of a Gauss–Newton
    step, see ``_factor``; 1 is for starts that may be far off. ``stiffness``: what the squared logarithmic strain
    costs, in units of the mean squared residual of a feature; it is that of the matrix after ``already`` (3×3), what
    was done to the moving volume before. ``free``: as much of it, along each axis, costs nothing. ``chosen``: which
    points of the fixed and of the moving side count in each transform, B×N of 0 and 1 (default: all).
    """
    radius = max(float(fixed.points.square().sum(1).mean().sqrt()), 1e-6)
    matrices = np.array(matrices, float)
    ahead, behind, basis = _Linear(fixed), _Linear(moving), _basis(kind)
    previous, factor = None, np.ones(len(matrices))
    for _ in range(iterations):
        beat()
        inverses = np.linalg.inv(matrices)
        both = (
            ahead.equations(*_residuals(fixed, moving, matrices, linear_fit, tuning, chosen[0])),
            behind.equations(*_residuals(moving, fixed, inverses, linear_fit, tuning, chosen[1])),
        )
        hessian, slope = _together(both, matrices, inverses)
        if stiffness:
            weight = 2 * stiffness * len(fixed.values)
            hessian, slope = hessian + weight * _STRETCH, slope + weight * _strain_slope(matrices, already, free)
        hessian, slope = basis.T @ hessian @ basis, slope @ basis
        diagonal = np.diagonal(hessian, axis1=1, axis2=2)
        ridge = damping * diagonal + 1e-9 * diagonal.max(1, keepdims=True) + 1e-12
        newton = -np.linalg.solve(hessian + ridge[..., None] * np.eye(len(slope.T)), slope[..., None])[..., 0]
        if previous is not None:
            factor = _factor(hessian, previous, newton, factor, boldest)
        previous = newton
        change = (factor[:, None] * newton @ basis.T).reshape(-1, 3, 4)
        moved = matrices[:, :3, :3] @ change
        reach = np.linalg.norm(moved[:, :, 3], axis=1) + np.linalg.norm(moved[:, :, :3], axis=(1, 2)) * radius
        change = change * np.minimum(longest / np.maximum(reach, 1e-9), 1.0)[:, None, None]
        candidates = _apply(matrices, change, kind)
        usable = np.isfinite(candidates).all((1, 2)) & (np.linalg.det(candidates[:, :3, :3]) > 0.05)
        matrices = np.where(usable[:, None, None], candidates, matrices)
        if (reach < enough * fixed.spacing.min()).all():
            break
    return matrices


def correlation(fixed: Side, moving: Side, matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(similarity, overlap) of B×4×4 transforms, arrays of B: mean of both directions' correlation of features over
    tissue points.

    Correlation is over the points that land in the other's support; overlap is their share. With several features,
    it is their mean.
    """
    scores, overlaps = [], []
    for a, b, m in ((fixed, moving, matrices), (moving, fixed, np.linalg.inv(matrices))):
        sampled, w = b.seen(a.points, m)
        values, total = a.values[:, None], w.sum(-1, keepdim=True).clamp_min(1e-6)
        da = values - (w * values).sum(-1, keepdim=True) / total
        db = sampled - (w * sampled).sum(-1, keepdim=True) / total
        covariance, power = (w * da * db).sum(-1), (w * da * da).sum(-1) * (w * db * db).sum(-1)
        scores.append((covariance / power.clamp_min(1e-12).sqrt()).mean(0))
        overlaps.append(w.mean(1))
    found = torch.stack([(scores[0] + scores[1]) / 2, torch.minimum(*overlaps)])
    return tuple(found.cpu().double().numpy())
