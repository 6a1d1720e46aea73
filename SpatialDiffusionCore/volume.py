"""Volumes in the world: reading, checking, resampling, and the canonical cube that a network sees.

A volume is an array with axes (i, j, k) and a 4×4 matrix from voxel centers to RAS millimeters (geometry.py).
"""
from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, replace
from typing import Optional

import numpy as np

from . import geometry
from .errors import InputError
from .files import extension, written_whole

#: A volume with fewer voxels than this along an axis holds too little to be registered.
MINIMUM_SIZE = 16

#: The least Hounsfield unit of 12-bit scanners, air.
AIR = -1024.0

NIFTI = (".nii", ".nii.gz")
ITK_IMAGES = (".nrrd", ".nhdr", ".mha", ".mhd")
INTERPOLATIONS = {"nearest": 0, "linear": 1, "cubic": 3}


@dataclass(frozen=True)
class Volume:
    """Voxels and where they are.

    data: (I, J, K) array of numbers. voxel_to_ras: 4×4 float64, voxel centers → RAS mm (may be oblique, mirrored,
    anisotropic or sheared). name: what messages call it. Raises InputError where either cannot be a 3D volume.
    """

    data: np.ndarray
    voxel_to_ras: np.ndarray
    name: str = "volume"

    def __post_init__(self):
        data = np.asarray(self.data)
        if data.ndim != 3:
            raise InputError(f"{self.name} is not a 3D volume: its array has shape {'×'.join(map(str, data.shape))}.")
        if data.dtype.kind not in "biuf":
            raise InputError(f"{self.name} holds {data.dtype} values; a volume of plain numbers is needed.")
        object.__setattr__(self, "data", data)
        matrix = np.asarray(self.voxel_to_ras, float)
        if matrix.shape == (4, 4) and np.isfinite(matrix).all() and not geometry.spacing(matrix).all():
            raise InputError(f"{self.name} has a spacing of 0 mm in its header; correct the header first.")
        object.__setattr__(self, "voxel_to_ras", geometry.as_affine(matrix, f"the header of {self.name}"))

    @property
    def shape(self) -> tuple:
        """Voxels along (i, j, k)."""
        return tuple(self.data.shape)

    @property
    def spacing(self) -> np.ndarray:
        """mm between voxels along (i, j, k)."""
        return geometry.spacing(self.voxel_to_ras)

    def center(self) -> np.ndarray:
        """Middle of the field of view, RAS mm."""
        return geometry.transform_points(self.voxel_to_ras, (np.array([self.shape]) - 1) / 2)[0]

    def corners(self) -> np.ndarray:
        """The 8 corner voxel centers, 8×3 RAS mm."""
        last = np.array(self.shape) - 1
        return geometry.transform_points(self.voxel_to_ras, np.array(list(np.ndindex(2, 2, 2))) * last)

    def moved(self, matrix) -> "Volume":
        """The same voxels elsewhere: ``matrix`` (4×4, RAS → RAS) goes into the header."""
        return replace(self, voxel_to_ras=np.asarray(matrix, float) @ self.voxel_to_ras)


# --- files -------------------------------------------------------------------------------------------------


def load(path, keep_type: bool = False) -> Volume:
    """Read a volume (.nii, .nii.gz with nibabel; .nrrd, .nhdr, .mha, .mhd with SimpleITK).

    Voxels become float32 with the file's scaling applied, or keep their type with ``keep_type`` (label maps).
    ``file.nii.gz@3`` takes volume 3 (from 0) of a 4D file. Raises InputError with a sentence that names the file.
    """
    path = os.fspath(path)
    index = None
    match = re.fullmatch(r"(.+)@(\d+)", path)
    if match and not os.path.exists(path):
        path, index = match[1], int(match[2])
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise InputError(f"{path} {what}.")
    kind = extension(path)
    if kind in NIFTI:
        data, matrix = _read_nifti(path, keep_type)
    elif kind in ITK_IMAGES:
        data, matrix = _read_itk(path)
    else:
        raise InputError(f"{path} is not a known volume file; use one of: {', '.join(NIFTI + ITK_IMAGES)}.")
    name = os.path.basename(path)
    data = _pick(data, index, path)
    if not keep_type and data.dtype.kind in "biuf":
        data = np.asarray(data, dtype=np.float32)
    return Volume(data, matrix, name)


def _pick(data: np.ndarray, index: Optional[int], path: str) -> np.ndarray:
    """The 3D volume of a file's array; further axes of length 1 are dropped."""
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 4:
        count = data.shape[3]
        if index is None:
            raise InputError(
                f"{path} is 4D ({'×'.join(map(str, data.shape))}): choose one of its volumes 0 to {count - 1} by "
                f"writing {path}@INDEX, for example {path}@0."
            )
        if index >= count:
            raise InputError(f"{path} has no volume {index}; it holds volumes 0 to {count - 1}.")
        return data[..., index]
    if index not in (None, 0):
        raise InputError(f"{path} is not 4D, so @{index} selects nothing; leave it out.")
    if data.ndim != 3:
        raise InputError(f"{path} is not a 3D volume: its array has shape {'×'.join(map(str, data.shape))}.")
    return data


def _read_nifti(path: str, keep_type: bool):
    import nibabel

    try:
        image = nibabel.load(path)
        if keep_type and image.dataobj.slope == 1 and image.dataobj.inter == 0:
            data = np.asanyarray(image.dataobj.get_unscaled())
        else:
            data = np.asanyarray(image.dataobj)
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise InputError(f"{path} cannot be read as NIfTI ({_first_line(error)}).") from error
    header_spacing = image.header.get_zooms()[:3]
    if len(header_spacing) == 3 and min(header_spacing) <= 0:
        raise InputError(f"{path} has a spacing of 0 mm in its header; correct the header first.")
    return data, image.affine


def _read_itk(path: str):
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(path)
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}).") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(
            f"{path} holds {image.GetNumberOfComponentsPerPixel()} numbers per voxel; a scalar volume is needed."
        )
    dimension = image.GetDimension()
    data = sitk.GetArrayFromImage(image).T  # ITK's arrays run k, j, i
    if dimension < 3:
        raise InputError(f"{path} is not a 3D volume: its array has shape {'×'.join(map(str, data.shape))}.")
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    spacing, origin = np.array(image.GetSpacing()[:3]), np.array(image.GetOrigin()[:3])
    return data, geometry.LPS_RAS @ geometry.from_parts(direction * spacing, origin)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200].rstrip(".") if lines else type(error).__name__


def check_output(path, extensions, what: str) -> None:
    """Raise InputError before work starts where ``path`` cannot be written: its folder or its extension."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise InputError(f"The folder {folder} for {what} does not exist; create it or choose another.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"The folder {folder} for {what} cannot be written to; choose another.")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give a file name for {what}.")
    if extensions and extension(path) not in extensions:
        raise InputError(f"{path} has no known extension for {what}; use one of: {', '.join(extensions)}.")


def save(volume: Volume, path) -> None:
    """Write a volume whole or not at all; the extension chooses the format (see ``load``).

    The array's type is kept where the format has it (booleans become uint8). Raises InputError for an unknown
    extension, a missing folder, or a sheared header in a format that cannot hold one (all but NIfTI).
    """
    path = os.fspath(path)
    check_output(path, NIFTI + ITK_IMAGES, "the volume")
    data = volume.data.astype(np.uint8) if volume.data.dtype == bool else volume.data
    if extension(path) in NIFTI:
        import nibabel

        image = nibabel.Nifti1Image(data, volume.voxel_to_ras, dtype=data.dtype)
        image.set_sform(volume.voxel_to_ras, code="scanner")
        image.set_qform(volume.voxel_to_ras, code="scanner", strip_shears=True)
        image.header.set_xyzt_units("mm")
        with written_whole(path) as temporary:
            nibabel.save(image, os.fspath(temporary))
        return
    import SimpleITK as sitk

    direction = volume.voxel_to_ras[:3, :3] / volume.spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-4:
        raise InputError(f"{path}: only NIfTI (.nii, .nii.gz) can hold the sheared header of {volume.name}.")
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    lps = geometry.LPS_RAS @ volume.voxel_to_ras
    image.SetSpacing(volume.spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    with written_whole(path) as temporary:
        sitk.WriteImage(image, os.fspath(temporary), useCompression=True)


# --- checks ------------------------------------------------------------------------------------------------


def validate(volume: Volume, role: str = "") -> None:
    """Raise InputError where a volume cannot be registered: too small, NaN or infinite values, or constant."""
    name = f"{role} volume {volume.name}".strip()
    name = name[0].upper() + name[1:]
    if 0 in volume.shape:
        raise InputError(f"{name} is empty (shape {'×'.join(map(str, volume.shape))}).")
    if min(volume.shape) < MINIMUM_SIZE:
        raise InputError(
            f"{name} has {'×'.join(map(str, volume.shape))} voxels; at least {MINIMUM_SIZE} are needed along each axis."
        )
    if not np.isfinite(volume.data).all():
        raise InputError(f"{name} contains NaN or infinite values; replace them (for example by 0) first.")
    if volume.data.min() == volume.data.max():
        raise InputError(f"{name} is constant (every voxel is {volume.data.flat[0]:g}); there is nothing to align.")


# --- resampling --------------------------------------------------------------------------------------------


def resample(volume: Volume, reference, matrix=None, interpolation: str = "linear") -> Volume:
    """``volume`` moved by ``matrix`` (4×4, RAS → RAS, to parent) and sampled on the voxels of ``reference``.

    ``reference`` is a Volume or Grid. ``nearest`` keeps the type and only uses values that occur (label maps);
    ``linear`` and ``cubic`` give float32. Outside the field of view: 0, or the smallest value where that is below 0
    (air in CT).
    """
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"Unknown interpolation {interpolation!r}; choose one of: {', '.join(INTERPOLATIONS)}.")
    matrix = np.eye(4) if matrix is None else geometry.as_affine(matrix, "the transform")
    to_voxel = np.linalg.inv(matrix @ volume.voxel_to_ras) @ reference.voxel_to_ras
    outside = min(0, volume.data.min()) if volume.data.size else 0
    if interpolation == "nearest":
        data = _nearest(volume.data, to_voxel, reference.shape, outside)
    else:
        from scipy.ndimage import affine_transform

        data = affine_transform(
            np.asarray(volume.data, np.float32), to_voxel[:3, :3], to_voxel[:3, 3], tuple(reference.shape),
            order=INTERPOLATIONS[interpolation], mode="constant", cval=float(outside), output=np.float32,
        )
    return Volume(data, reference.voxel_to_ras, volume.name)


def _nearest(data, to_voxel, shape, outside):
    """Nearest-neighbor sampling that never converts values (scipy goes through float64, too little for int64)."""
    result = np.full(shape, outside, dtype=data.dtype)
    j, k = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for i in range(shape[0]):  # plane by plane, to bound memory
        inside, indices = True, []
        for axis in range(3):
            row = to_voxel[axis]
            index = np.floor(row[0] * i + row[1] * j + row[2] * k + (row[3] + 0.5)).astype(np.int64)
            inside = inside & (index >= 0) & (index < data.shape[axis])
            indices.append(index)
        result[i][inside] = data[tuple(index[inside] for index in indices)]
    return result


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels without values: shape (I, J, K) and its 4×4 voxel → RAS matrix."""

    shape: tuple
    voxel_to_ras: np.ndarray

    @property
    def normalized_to_ras(self) -> np.ndarray:
        """Normalized (x, y, z) of a tensor of this shape → RAS mm, 4×4."""
        return self.voxel_to_ras @ geometry.normalized_to_voxel(self.shape)

    def with_shape(self, shape) -> "Grid":
        """The same box cut into another number of voxels."""
        shape = tuple(int(n) for n in shape)
        to_ras = self.normalized_to_ras @ np.linalg.inv(geometry.normalized_to_voxel(shape))
        return Grid(shape, to_ras)

    def around(self, low, high) -> "Grid":
        """The part of the grid (whole voxels) between two corners in normalized (x, y, z)."""
        size = np.array(self.shape)
        first = np.clip(np.floor((np.array(low)[::-1] + 1) / 2 * size), 0, size - 1).astype(int)
        last = np.clip(np.ceil((np.array(high)[::-1] + 1) / 2 * size), first + 1, size).astype(int)
        return Grid(tuple(int(n) for n in last - first), self.voxel_to_ras @ geometry.from_parts(np.eye(3), first))

    def moved(self, matrix) -> "Grid":
        """The grid under a 4×4 RAS → RAS matrix."""
        return Grid(self.shape, np.asarray(matrix, float) @ self.voxel_to_ras)


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
    mask: Optional[Volume] = field(default=None)
    levels: dict = field(default_factory=dict, init=False, repr=False, compare=False)


def prepare(volume: Volume, mask: Optional[Volume] = None, percentiles=(0.0, 99.5)) -> Prepared:
    """Find a volume's intensity window and tissue.

    The window is taken from a subsample (air included at the low end, in CT what scanners put where they saw nothing cut off
    there, and the brightest half per cent); tissue
    is what Otsu's threshold separates from the background, or the mask where one is given (any shape, in world
    space). Raises InputError where the mask is empty.
    """
    coarse, voxel = subsample(volume)
    if coarse.min() == coarse.max():  # the subsample missed what little there is
        coarse, voxel = np.asarray(volume.data, np.float32), np.eye(4)
    to_ras = volume.voxel_to_ras @ voxel
    low, high = (float(v) for v in np.percentile(coarse, percentiles))
    if high <= low:
        low, high = float(coarse.min()), float(coarse.max())
    if _padded(coarse):
        low = AIR
    threshold = otsu(np.clip(coarse, low, high))
    foreground = coarse > threshold
    if mask is not None:
        inside = resample(mask, Grid(coarse.shape, to_ras), interpolation="nearest").data != 0
        if not inside.any():
            raise InputError(f"The mask {mask.name} selects no part of {volume.name}; check that they overlap.")
        foreground = foreground & inside if (foreground & inside).any() else inside
    if not foreground.any():
        foreground = coarse > coarse.min()
    points = geometry.transform_points(to_ras, np.argwhere(foreground))
    center = points.mean(axis=0)
    covariance = np.cov(points.T, bias=True) if len(points) > 3 else np.eye(3)
    covariance = covariance + np.eye(3) * 1e-6 * max(1.0, np.trace(covariance))
    return Prepared(volume, (low, high), center, covariance, threshold, mask)


def subsample(volume: Volume) -> tuple:
    """(at most 64³ of a volume's voxels, evenly spaced, float32; their 4×4 voxel → voxel matrix)."""
    stride = tuple(-(-n // 64) for n in volume.shape)
    start = tuple(s // 2 for s in stride)
    part = volume.data[tuple(slice(b, None, s) for b, s in zip(start, stride))]
    return np.asarray(part, np.float32), geometry.from_parts(np.diag(stride), start)


def _padded(values: np.ndarray) -> bool:
    """Whether values are Hounsfield units with one for what the scanner did not see, far below that of air."""
    padding = values < AIR - 100
    if not padding.any() or not (np.abs(values - AIR) < 100).mean() > 0.01:
        return False
    return bool((values[padding] == values.min()).mean() > 0.9)


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


def canonical_grid(prepared: Prepared, size, spacing, oriented: bool = True) -> Grid:
    """The model's cube around a volume's tissue.

    size: voxels (D, H, W); spacing: mm, one number or three, also along (D, H, W). Oriented volumes get these axes
    along R, A, S; others (OCT) along their own array axes, see ``scan_axes``.
    """
    size = tuple(int(n) for n in np.broadcast_to(size, 3))
    spacing = np.broadcast_to(np.asarray(spacing, float), 3)
    axes = np.eye(3) if oriented else scan_axes(prepared.volume)
    linear = axes * spacing
    return Grid(size, geometry.from_parts(linear, prepared.tissue_center - linear @ ((np.array(size) - 1) / 2)))


def sample(prepared: Prepared, grid: Grid, device="cpu"):
    """The volume on a grid, as a 1×1×D×H×W float32 tensor in 0…1, 0 outside the field of view."""
    return sample_with_support(prepared, grid, device)[0]


def sample_with_support(prepared: Prepared, grid: Grid, device="cpu"):
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
    to_normalized = (
        np.linalg.inv(geometry.normalized_to_voxel(data.shape[2:])) @ np.linalg.inv(pooled) @ to_voxel
    )
    coordinates = _coordinates(to_normalized, grid.shape, data.device)
    values = F.grid_sample(data, coordinates, mode="bilinear", padding_mode="zeros", align_corners=False)
    # The volume's far faces: pooling may have reached beyond them.
    last = (2 * np.array(volume.shape) / (np.array(data.shape[2:]) * factors) - 1)[::-1]
    corners = geometry.transform_points(to_normalized, np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1))
    if (np.abs(corners) < 1 - 1e-5).all() and (corners < last - 1e-5).all():
        support = torch.ones_like(values)
    else:
        support = True
        for axis in range(3):
            place = coordinates[..., axis]
            support = (place >= -1) & (place <= float(last[axis])) & support
        support = support[None].to(values.dtype)
        values *= support
    if prepared.mask is not None:
        inside = resample(prepared.mask, grid, interpolation="nearest").data != 0
        support = support * torch.as_tensor(inside, dtype=values.dtype, device=values.device)
    return values, support


def sample_tensor(values, source: Grid, grid: Grid):
    """1×C×D×H×W values that lie on the grid ``source``, trilinear on another grid; 0 outside."""
    import torch.nn.functional as F

    to_normalized = np.linalg.inv(source.normalized_to_ras) @ grid.voxel_to_ras
    coordinates = _coordinates(to_normalized, grid.shape, values.device)
    return F.grid_sample(values, coordinates, mode="bilinear", padding_mode="zeros", align_corners=False)


def _averaged(prepared: Prepared, factors: tuple, device):
    """The volume in 0…1 (1×1×I×J×K float32), blocks of ``factors`` voxels averaged; kept once made."""
    import torch
    import torch.nn.functional as F

    key = factors, str(device)
    if key in prepared.levels:
        return prepared.levels[key]
    half = tuple(factor // 2 if factor % 2 == 0 else factor for factor in factors)
    low, high = prepared.window
    if math.prod(half) >= 8 and half != factors:  # of larger levels little would be saved
        data = F.avg_pool3d(_averaged(prepared, half, device), tuple(f // h for f, h in zip(factors, half)),
                            ceil_mode=True)  # the last voxels count, however many are left over
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


def _coordinates(to_normalized: np.ndarray, shape, device):
    """1×D×H×W×3 float32: where the voxels of a grid lie under a 4×4 matrix, voxel (i, j, k) → normalized (x, y, z)."""
    import torch

    i, j, k = (np.arange(n, dtype=float)[:, None] * to_normalized[:3, axis] for axis, n in enumerate(shape))
    planes = (i[:, None] + j + to_normalized[:3, 3]).reshape(-1, 3)
    # A row of the grid is a place in its plane plus the same steps along k: one product instead of three broadcasts.
    repeated = np.tile(np.eye(3), (1, shape[2]))
    planes, repeated, steps = (
        torch.as_tensor(a, dtype=torch.float32, device=device) for a in (planes, repeated, k.reshape(1, -1))
    )
    return torch.addmm(steps, planes, repeated).view(1, *shape, 3)
