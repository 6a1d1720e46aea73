"""What is computed once per volume, and sampling it on grids: window, tissue, and the cube that a network sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..files import percent
from . import geometry, intensity
from . import mask as mask_module
from .volume import Grid, Volume

if TYPE_CHECKING:  # imported by the functions that need it: the core opens without torch
    import torch

#: Of so few voxels of the subsample in a mask the mask's own say better where it lies.
FEW = 100


@dataclass(frozen=True)
class Prepared:
    """What is computed once per volume: intensities brought to 0…1 at low resolution, and where the tissue is.

    tissue_center (RAS mm) and tissue_covariance (3×3, mm²) describe the foreground as a cloud of points;
    window: (low, high) original intensities that become 0 and 1. levels: the volume at lower resolutions, made when
    they are first sampled.
    """

    volume: Volume
    window: tuple
    tissue_center: np.ndarray
    tissue_covariance: np.ndarray
    threshold: float
    mask: Volume | None = field(default=None)
    levels: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def warnings(self) -> tuple:
        """Sentences about the headers and values of the volume and its mask."""
        return self.volume.warnings + (() if self.mask is None else self.mask.warnings)

    @property
    def size(self) -> float:
        """Size of the tissue, mm: twice the root mean square distance from its center."""
        return float(2 * np.sqrt(np.trace(self.tissue_covariance)))

    def scaled(self, factor: float) -> Prepared:
        """The same with all lengths times ``factor``; what was computed at lower resolutions is shared."""
        if factor == 1.0:
            return self
        matrix = np.diag([factor, factor, factor, 1.0])
        other = replace(
            self,
            volume=self.volume.moved(matrix),
            tissue_center=self.tissue_center * factor,
            tissue_covariance=self.tissue_covariance * factor**2,
            mask=None if self.mask is None else self.mask.moved(matrix),
        )
        object.__setattr__(other, "levels", self.levels)
        return other

    def mirrored(self) -> Prepared:
        """The same volume as in a mirror, left and right swapped about the tissue's center."""
        flip = np.diag([-1.0, 1.0, 1.0])
        matrix = geometry.about(flip, self.tissue_center)
        other = replace(
            self,
            volume=self.volume.moved(matrix),
            tissue_covariance=flip @ self.tissue_covariance @ flip,
            mask=None if self.mask is None else self.mask.moved(matrix),
        )
        object.__setattr__(other, "levels", self.levels)
        return other


def prepare(volume: Volume, mask: Volume | None = None, percentiles: tuple[float, float] = (0.0, 99.5)) -> Prepared:
    """Find a volume's intensity window and tissue.

    The window is taken from a subsample: air included at the low end, padding cut off there, and the brightest half per
    cent. Tissue is what Otsu's threshold separates from the background, or the mask where one is given (any shape, in
    world space). Raises InputError where the mask selects nothing of the volume.
    """
    volume = usable(volume)
    coarse, voxel = intensity.subsample(volume.data)
    if coarse.min() == coarse.max():  # the subsample missed what little there is
        coarse, voxel = np.asarray(volume.data, np.float32), np.eye(4)
    to_ras = volume.voxel_to_ras @ voxel
    low, high = (float(v) for v in np.percentile(coarse, percentiles))
    low = max(low, intensity.floor(coarse))
    if high <= low:
        low, high = float(coarse.min()), float(coarse.max())
    threshold = otsu(np.clip(coarse, low, high))
    foreground = coarse > threshold
    if not foreground.any():
        foreground = coarse > coarse.min()
    points = geometry.transform_points(to_ras, np.argwhere(foreground))
    if mask is not None:
        mask = mask_module.binary(mask)
        inside = mask_module.on_grid(mask, Grid(coarse.shape, to_ras))
        chosen = foreground & inside if (foreground & inside).any() else inside
        points = geometry.transform_points(to_ras, np.argwhere(chosen))
        if len(points) < FEW:  # or none, where all of it lies between the voxels of the subsample
            points = mask_module.points_within(mask, volume)
        if not len(points):
            raise InputError(f"The mask {mask.name} selects no part of {volume.name}; check that they overlap.")
    center, covariance = _cloud(points, volume.spacing)
    return Prepared(volume, (low, high), center, covariance, threshold, mask)


def usable(volume: Volume) -> Volume:
    """The volume with finite values alone, and without padding that is brighter than everything else.

    Such voxels get the least of the usual values, background; the ``warnings`` then say so. The same volume where there
    are none.
    """
    data, warnings = volume.data, list(volume.warnings)
    single = data
    if data.dtype.kind == "f":
        with np.errstate(over="ignore"):
            single = np.asarray(data, np.float32)  # beyond float32 is infinite, too
    if not intensity.is_finite(single):
        wrong = ~np.isfinite(single)
        data = np.where(wrong, np.float32(intensity.background(single[~wrong])), single)
        warnings.append(
            f"{percent(wrong.mean())} of {volume.name} hold NaN or infinite values; they are taken for background."
        )
    coarse = intensity.subsample(data)[0]
    limit = intensity.padding_above(coarse)
    if limit is not None:
        wrong, value = data > limit, float(data.max())
        data = np.where(wrong, np.float32(intensity.background(coarse)), data)
        warnings.append(
            f"{percent(wrong.mean())} of {volume.name} hold values around {value:g}, far above all others and up to "
            "its borders; they are taken for what the scanner did not see, and for background."
        )
    return volume if data is volume.data else replace(volume, data=data, warnings=tuple(warnings))


def _cloud(points: np.ndarray, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean, covariance) of points that stand for voxels: that of a single voxel or layer is that of its extent."""
    covariance = np.cov(points.T, bias=True) if len(points) > 3 else np.eye(3) * spacing.max() ** 2
    covariance = covariance + np.eye(3) * 1e-6 * np.trace(covariance)
    least = spacing.min() ** 2 / 12
    if np.linalg.eigvalsh(covariance)[0] < least:
        covariance = covariance + np.eye(3) * least
    return points.mean(axis=0), covariance


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Threshold that maximizes the variance between two classes (Otsu, IEEE SMC 9(1):62, 1979)."""
    counts, edges = np.histogram(values, bins=bins)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(float)
    above = below[-1] - below
    moments = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (moments / below - (moments[-1] - moments) / above) ** 2
    return float(edges[int(np.nanargmax(between[:-1])) + 1])


def scan_order(volume: Volume) -> tuple:
    """The array axes of a scan without anatomical orientation, as (lateral, depth, lateral).

    Depth is the axis with the finest spacing, of nearly equal ones (5 %) the one with the shortest extent, and in the
    middle, where the published method has it. The other two keep the array's order.
    """
    near = volume.spacing <= 1.05 * volume.spacing.min()
    depth = int(np.argmin(np.where(near, volume.spacing * volume.shape, np.inf)))
    first, last = (axis for axis in range(3) if axis != depth)
    return first, depth, last


def scan_axes(volume: Volume) -> np.ndarray:
    """3×3: unit vectors in RAS along (lateral, depth, lateral), in columns.

    Depth runs as in the array; the last axis is turned round where the three would be a mirror image of the world.
    """
    axes = (volume.voxel_to_ras[:3, :3] / volume.spacing)[:, scan_order(volume)]
    if np.linalg.det(axes) < 0:
        axes[:, 2] *= -1
    return axes


def anatomical_axes(volume: Volume) -> np.ndarray:
    """3×3: unit vectors in RAS, in columns, along the axes of the array, named and directed to be nearest to R, A, S.

    A rotation. So an answer depends on how a volume was scanned, not on how its header is turned.
    """
    order, signs = _nearest_anatomical(volume)
    axes = (volume.voxel_to_ras[:3, :3] / volume.spacing)[:, order] * signs
    if np.abs(axes - np.eye(3)).max() < 1e-6:
        return np.eye(3)
    u, _, vt = np.linalg.svd(axes)  # the nearest rotation, where the axes are sheared
    return u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt


def anatomical_order(volume: Volume) -> Volume:
    """The same volume, its array's axes in the order and direction nearest to R, A, S (a view): programs differ in
    that.
    """
    order, signs = _nearest_anatomical(volume)
    change = np.zeros((4, 4))
    change[3, 3] = 1.0
    for axis, (old, sign) in enumerate(zip(order, signs)):
        change[old, axis], change[old, 3] = sign, 0.0 if sign > 0 else volume.shape[old] - 1
    data = volume.data.transpose(order)[tuple(slice(None, None, int(sign)) for sign in signs)]
    return replace(volume, data=data, voxel_to_ras=volume.voxel_to_ras @ change)


def _nearest_anatomical(volume: Volume) -> tuple:
    """(which axis of the array is nearest to R, A and S, and the sign of its direction along it)."""
    directions = volume.voxel_to_ras[:3, :3] / volume.spacing
    order = max(permutations(range(3)), key=lambda order: np.abs(directions[range(3), order]).sum())
    return order, np.where(np.diag(directions[:, order]) < 0, -1.0, 1.0)


def canonical_grid(
    prepared: Prepared, size: int | Sequence[int], spacing: float | Sequence[float] | np.ndarray, oriented: bool = True
) -> Grid:
    """The model's cube around a volume's tissue.

    size: voxels (D, H, W); spacing: mm, one number or three, also along (D, H, W). Oriented volumes get these axes
    nearly along R, A, S (``anatomical_axes``); others (OCT) along their own array axes, see ``scan_axes``.
    """
    size = tuple(int(n) for n in np.broadcast_to(size, 3))
    spacing = np.broadcast_to(np.asarray(spacing, float), 3)
    axes = anatomical_axes(prepared.volume) if oriented else scan_axes(prepared.volume)
    linear = axes * spacing
    return Grid(size, geometry.from_parts(linear, prepared.tissue_center - linear @ ((np.array(size) - 1) / 2)))


def sample(prepared: Prepared, grid: Grid, device: torch.device | str = "cpu") -> torch.Tensor:
    """The volume on a grid, as a 1×1×D×H×W float32 tensor in 0…1, 0 outside the field of view."""
    return sample_with_support(prepared, grid, device)[0]


def sample_with_support(
    prepared: Prepared, grid: Grid, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, support) on a grid, each 1×1×D×H×W float32; support is 1 inside the field of view (and the mask).

    Voxels much finer than the grid are averaged first, so that fine detail does not alias.
    """
    import torch
    import torch.nn.functional as F

    volume = prepared.volume
    to_voxel = np.linalg.inv(volume.voxel_to_ras) @ grid.voxel_to_ras
    # A row's length is how many voxels one step of the grid spans, whichever way it is turned; 1.95 may count as 2.
    steps = np.linalg.norm(to_voxel[:3, :3], axis=1)
    factors = tuple(max(1, min(int(1.05 * step), size)) for step, size in zip(steps, volume.shape))
    data = _averaged(prepared, factors, torch.device(device))
    pooled = geometry.from_parts(np.diag(factors), (np.array(factors) - 1) / 2)
    to_normalized = np.linalg.inv(geometry.normalized_to_voxel(data.shape[2:])) @ np.linalg.inv(pooled) @ to_voxel
    coordinates = _coordinates(to_normalized, grid.shape, data.device)
    values = F.grid_sample(data, coordinates, mode="bilinear", padding_mode="zeros", align_corners=False)
    # The volume's far faces: pooling may have reached beyond them.
    last = (2 * np.array(volume.shape) / (np.array(data.shape[2:]) * factors) - 1)[::-1]
    corners = geometry.transform_points(to_normalized, np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1))
    if (np.abs(corners) < 1 - 1e-5).all() and (corners < last - 1e-5).all():
        support = torch.ones_like(values)
    else:
        seen = torch.ones_like(coordinates[..., 0], dtype=torch.bool)
        for axis in range(3):
            place = coordinates[..., axis]
            seen &= (place >= -1) & (place <= float(last[axis]))
        support = seen[None].to(values.dtype)
        values *= support
    if prepared.mask is not None:
        inside = mask_module.on_grid(prepared.mask, grid)
        support = support * torch.as_tensor(inside, dtype=values.dtype, device=values.device)
    return values, support


def sample_tensor(values: torch.Tensor, source: Grid, grid: Grid) -> torch.Tensor:
    """1×C×D×H×W values that lie on the grid ``source``, trilinear on another grid; 0 outside."""
    import torch.nn.functional as F

    to_normalized = np.linalg.inv(source.normalized_to_ras) @ grid.voxel_to_ras
    coordinates = _coordinates(to_normalized, grid.shape, values.device)
    return F.grid_sample(values, coordinates, mode="bilinear", padding_mode="zeros", align_corners=False)


def _averaged(prepared: Prepared, factors: tuple, device: torch.device | str) -> torch.Tensor:
    """The volume in 0…1 (1×1×I×J×K float32), blocks of ``factors`` voxels averaged; kept once made."""
    import torch
    import torch.nn.functional as F

    key = factors, str(device)
    if key in prepared.levels:
        return prepared.levels[key]
    half = tuple(factor // 2 if factor % 2 == 0 else factor for factor in factors)
    low, high = prepared.window
    if math.prod(half) >= 8 and half != factors:  # of larger levels little would be saved
        data = F.avg_pool3d(
            _averaged(prepared, half, device), tuple(f // h for f, h in zip(factors, half)), ceil_mode=True
        )  # the last voxels count, however many are left over
    else:
        # Read in the order in which the voxels lie in memory (files of NIfTI come with the first axis fastest).
        array = prepared.volume.data
        order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
        data = torch.from_numpy(np.require(array.transpose(order), np.float32, ["C", "W"]))[None, None].to(device)
        if max(factors) > 1:
            data = F.avg_pool3d(data, [factors[axis] for axis in order], ceil_mode=True)
        data = data.permute(0, 1, *(2 + order.index(axis) for axis in range(3)))
        data = data.sub(low).div_(high - low).clamp_(0, 1)
    prepared.levels[key] = data
    return data


def _coordinates(to_normalized: np.ndarray, shape: Sequence[int], device: torch.device | str) -> torch.Tensor:
    """1×D×H×W×3 float32: where the voxels of a grid lie under a 4×4 matrix, voxel (i, j, k) → normalized (x, y, z)."""
    import torch

    i, j, k = (np.arange(n, dtype=float)[:, None] * to_normalized[:3, axis] for axis, n in enumerate(shape))
    planes = (i[:, None] + j + to_normalized[:3, 3]).reshape(-1, 3)
    # A row of the grid is a place in its plane plus the same steps along k: one product instead of three broadcasts.
    repeated = np.tile(np.eye(3), (1, shape[2]))
    tensors = (torch.as_tensor(a, dtype=torch.float32, device=device) for a in (k.reshape(1, -1), planes, repeated))
    return torch.addmm(*tensors).view(1, *shape, 3)
