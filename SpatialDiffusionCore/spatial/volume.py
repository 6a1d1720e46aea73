"""Volumes and grids in the world: voxels with a 4×4 matrix from voxel centers to RAS millimeters, checks, resampling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from . import geometry

#: A volume with fewer voxels than this along an axis holds too little to be registered.
MINIMUM_SIZE = 16

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
            np.asarray(volume.data, np.float32),
            to_voxel[:3, :3],
            to_voxel[:3, 3],
            tuple(reference.shape),
            order=INTERPOLATIONS[interpolation],
            mode="constant",
            cval=float(outside),
            output=np.float32,
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
