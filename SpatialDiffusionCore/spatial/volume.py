"""Volumes and grids in the world: voxels with a 4×4 matrix from their centers to RAS mm, checks, resampling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from . import geometry, intensity

#: A volume with fewer voxels than this along an axis holds too little to be registered.
MINIMUM_SIZE = 4

#: The types that files hold, for those that they do not.
_STORED_AS = {"bool": np.uint8, "float16": np.float32, "longdouble": np.float64, "float128": np.float64}

INTERPOLATIONS = {"nearest": 0, "linear": 1, "cubic": 3}


@dataclass(frozen=True)
class Volume:
    """Voxels and where they are.

    data: (I, J, K) array of numbers. voxel_to_ras: 4×4 float64, voxel centers → RAS mm (may be oblique, mirrored,
    anisotropic or sheared). name: what messages call it. path: of its file, in full, where it has one. warnings:
    sentences about what its file's header leaves open or contradicts. Raises InputError where data or matrix cannot be
    a 3D volume.
    """

    data: np.ndarray
    voxel_to_ras: np.ndarray
    name: str = "volume"
    path: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self):
        data = np.asarray(self.data)
        if data.ndim != 3:
            raise InputError(f"{self.name} is not a 3D volume: its array has shape {'×'.join(map(str, data.shape))}.")
        if data.dtype.kind not in "biuf":
            kind = "colors" if data.dtype.names else f"{data.dtype} values"
            raise InputError(f"{self.name} holds {kind}; a volume of plain numbers is needed.")
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

    def moved(self, matrix) -> Volume:
        """The same voxels elsewhere: ``matrix`` (4×4, RAS → RAS) goes into the header."""
        return replace(self, voxel_to_ras=np.asarray(matrix, float) @ self.voxel_to_ras)

    def storable(self) -> np.ndarray:
        """The voxels in a type that files hold: booleans become uint8, half precision float32."""
        return self.data.astype(_STORED_AS.get(self.data.dtype.name, self.data.dtype), copy=False)

    def to_nibabel(self) -> Any:
        """A nibabel.Nifti1Image of the same voxels, in millimeters and scanner space; booleans become uint8."""
        from .volume_io import nifti

        return nifti.image_of(self.storable(), self.voxel_to_ras)

    def to_simpleitk(self) -> Any:
        """A SimpleITK.Image of a copy, sheared as the volume is; booleans become uint8."""
        from .volume_io import itk

        return itk.image_of(self.storable(), self.voxel_to_ras)


def validate(volume: Volume, role: str = "") -> None:
    """Raise InputError where a volume cannot be registered: too small, without finite values, or constant."""
    name = f"{role} volume {volume.name}".strip()
    name = name[0].upper() + name[1:]
    shape, data = "×".join(map(str, volume.shape)), volume.data
    if 0 in volume.shape:
        raise InputError(f"{name} is empty (shape {shape}).")
    if min(volume.shape) < MINIMUM_SIZE:
        raise InputError(f"{name} has {shape} voxels; at least {MINIMUM_SIZE} are needed along each axis.")
    values = data if intensity.is_finite(data) else data[np.isfinite(data)]
    if not values.size:
        raise InputError(f"{name} holds nothing but NaN or infinite values; export it again.")
    if values.min() == values.max():
        raise InputError(f"{name} is constant (every voxel is {values.flat[0]:g}); there is nothing to align.")


def resample(
    volume: Volume,
    reference,
    matrix=None,
    interpolation: str = "linear",
    background: float | None = None,
    whole_voxels: bool = True,
) -> Volume:
    """``volume`` moved by ``matrix`` (4×4, RAS → RAS, to parent) and sampled on the voxels of ``reference``.

    ``reference`` is a Volume or Grid. ``nearest`` keeps the type and only uses values that occur (label maps);
    ``linear`` and ``cubic`` give float32; they interpolate among finite values, and where the nearest voxel is NaN or
    infinite the result is, too. Outside the field of view: ``background``, by default 0, or air in CT.

    The field of view ends half a voxel beyond the outermost voxel centers, as in ITK; between the two lies the value
    at the edge. Without ``whole_voxels`` it ends at the centers (``linear`` and ``cubic``), where a grid that is the
    volume's own up to rounding loses its faces.
    """
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"Unknown interpolation {interpolation!r}; choose one of: {', '.join(INTERPOLATIONS)}.")
    matrix = np.eye(4) if matrix is None else geometry.as_affine(matrix, "the transform")
    to_voxel = np.linalg.inv(matrix @ volume.voxel_to_ras) @ reference.voxel_to_ras
    shape = tuple(reference.shape)
    outside = intensity.outside(volume.data) if background is None else float(background)
    if interpolation == "nearest":
        return Volume(
            _nearest(volume.data, to_voxel, shape, _of_type(outside, volume.data.dtype, volume.name)),
            reference.voxel_to_ras,
            volume.name,
        )
    with np.errstate(over="ignore"):
        data = np.asarray(volume.data, np.float32)
    if intensity.is_finite(data):
        moved = _interpolated(data, to_voxel, shape, interpolation, outside, whole_voxels)
    else:
        moved = _interpolated(_nearest_finite(data), to_voxel, shape, interpolation, outside, whole_voxels)
        nearest = _nearest(data, to_voxel, shape, np.float32(0.0))
        moved = np.where(np.isfinite(nearest), moved, nearest)
    return Volume(moved, reference.voxel_to_ras, volume.name)


def overlaps(volume: Volume, reference, matrix) -> bool:
    """Whether a voxel center of ``reference`` (Volume or Grid) lies in ``volume`` moved by ``matrix`` (4×4, RAS mm)."""
    to_voxel = np.linalg.inv(np.asarray(matrix, float) @ volume.voxel_to_ras) @ reference.voxel_to_ras
    return any(inside.any() for inside, _ in _nearest_voxels(to_voxel, tuple(reference.shape), volume.shape))


def _of_type(value: float, dtype: np.dtype, name: str):
    """``value`` in the type of an array; InputError where the type does not hold it."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not (np.isfinite(value) and value == int(value) and limits.min <= value <= limits.max):
            raise InputError(f"The background {value:g} cannot be stored in {name}, which holds {dtype.name} values.")
    return dtype.type(value)


def _interpolated(
    data: np.ndarray, to_voxel: np.ndarray, shape, interpolation: str, outside: float, whole_voxels: bool
) -> np.ndarray:
    from scipy.ndimage import affine_transform

    # Beyond the outermost centers splines go on mirrored, as they were fitted (Unser, IEEE Signal Processing Magazine
    # 16(6):22, 1999) and as ITK's do; the linear interpolation of ITK takes the value at the edge.
    beyond = "nearest" if interpolation == "linear" else "mirror"
    result = affine_transform(
        data,
        to_voxel[:3, :3],
        to_voxel[:3, 3],
        shape,
        order=INTERPOLATIONS[interpolation],
        mode=beyond if whole_voxels else "constant",
        cval=outside,
        output=np.float32,
    )
    if whole_voxels:
        for plane, (inside, _) in zip(result, _nearest_voxels(to_voxel, shape, data.shape)):
            plane[~inside] = outside
    return result


def _nearest_finite(data: np.ndarray) -> np.ndarray:
    """The array with the nearest finite value in place of each that is not (0 where there is none at all)."""
    from scipy.ndimage import distance_transform_edt

    wrong = ~np.isfinite(data)
    if wrong.all():
        return np.zeros_like(data)
    return data[tuple(distance_transform_edt(wrong, return_distances=False, return_indices=True))]


def _nearest(data, to_voxel, shape, outside):
    """Nearest-neighbor sampling that never converts values (scipy goes through float64, too little for int64)."""
    result = np.full(shape, outside, dtype=data.dtype)
    for plane, (inside, indices) in zip(result, _nearest_voxels(to_voxel, shape, data.shape)):
        # Only what is inside is sure to be a number that integers hold.
        plane[inside] = data[tuple(index[inside].astype(np.int64) for index in indices)]
    return result


def _nearest_voxels(to_voxel, shape, size) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """For each plane of a grid of ``shape``, to bound memory: (which of its voxels lie in an array of ``size``, the
    indices of the nearest voxel there along each axis, whole numbers as floats)."""
    j, k = np.arange(shape[1])[:, None], np.arange(shape[2])[None, :]
    for i in range(shape[0]):
        inside, indices = np.ones(shape[1:], bool), []
        for axis in range(3):
            row = to_voxel[axis]
            index = np.floor(row[0] * i + row[1] * j + row[2] * k + (row[3] + 0.5))
            inside &= (index >= 0) & (index < size[axis])
            indices.append(index)
        yield inside, indices


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels without values: shape (I, J, K) and its 4×4 voxel → RAS matrix."""

    shape: tuple
    voxel_to_ras: np.ndarray

    @property
    def normalized_to_ras(self) -> np.ndarray:
        """Normalized (x, y, z) of a tensor of this shape → RAS mm, 4×4."""
        return self.voxel_to_ras @ geometry.normalized_to_voxel(self.shape)

    def with_shape(self, shape) -> Grid:
        """The same box cut into another number of voxels."""
        shape = tuple(int(n) for n in shape)
        to_ras = self.normalized_to_ras @ np.linalg.inv(geometry.normalized_to_voxel(shape))
        return Grid(shape, to_ras)

    def around(self, low, high) -> Grid:
        """The part of the grid (whole voxels) between two corners in normalized (x, y, z)."""
        size = np.array(self.shape)
        first = np.clip(np.floor((np.array(low)[::-1] + 1) / 2 * size), 0, size - 1).astype(int)
        last = np.clip(np.ceil((np.array(high)[::-1] + 1) / 2 * size), first + 1, size).astype(int)
        return Grid(tuple(int(n) for n in last - first), self.voxel_to_ras @ geometry.from_parts(np.eye(3), first))

    def moved(self, matrix) -> Grid:
        """The grid under a 4×4 RAS → RAS matrix."""
        return Grid(self.shape, np.asarray(matrix, float) @ self.voxel_to_ras)
