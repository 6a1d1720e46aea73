"""Volumes as people have them: files, images of nibabel and SimpleITK, arrays with an affine."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .errors import InputError
from .spatial import geometry
from .spatial.volume import Volume

_KINDS = (
    "a path, a Volume, an image of nibabel or SimpleITK, or a pair (array, affine) with the 4×4 matrix from voxels to "
    "RAS millimeters"
)


def as_volume(given: Any, role: str = "moving", keep_type: bool = False) -> Volume:
    """The Volume that a caller means by a path, a Volume, an image of nibabel or SimpleITK, or a pair (array, affine).

    Arrays are (I, J, K), the affine is 4×4 from voxel centers to RAS millimeters. role: "moving", "fixed" and the like,
    for messages and for the name of what has none. keep_type: leave the numbers' type as it is (label maps).
    Raises InputError that says what was given instead, or why it is no 3D volume.
    """
    if isinstance(given, Volume):
        return given
    if isinstance(given, (str, os.PathLike)):
        from .spatial.volume_file import load

        return load(given, keep_type=keep_type)
    if isinstance(given, (tuple, list)) and len(given) == 2 and np.ndim(given[1]) == 2:
        return _typed(_array(given[0]), np.asarray(given[1], float), f"the {role} array", keep_type)
    parts = _of_nibabel(given, role) or _of_simpleitk(given, role)
    if parts is not None:
        return _typed(parts[0], parts[1], parts[2], keep_type, tuple(parts[3:]))
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        raise InputError(
            f"The {role} volume is an array, which does not say where its voxels are; give a pair (array, affine) with "
            "the 4×4 matrix from voxels to RAS millimeters."
        )
    raise InputError(f"The {role} volume is of type {type(given).__name__}; give {_KINDS}.")


def as_mask(given: Any, role: str) -> Volume | None:
    """The same for a mask, or None where there is none."""
    return None if given is None else as_volume(given, role)


def as_matrix(given: Any, moving: Any = None, fixed: Any = None) -> np.ndarray | None:
    """The 4×4 moving → fixed matrix (RAS, mm) that a caller means by an array, a transform file or a Registration.

    moving, fixed: Volumes, which a FLIRT matrix or an LTA in voxels needs. None stays None.
    """
    if isinstance(given, (str, os.PathLike)):
        from .spatial.transform_file import read_transform

        return read_transform(given, moving=moving, fixed=fixed)
    return getattr(given, "matrix", given)


def _array(data: Any) -> np.ndarray:
    if hasattr(data, "detach"):  # a tensor
        data = data.detach().cpu().numpy()
    return np.asarray(data)


def _typed(data: np.ndarray, matrix: np.ndarray, name: str, keep_type: bool, warnings: tuple[str, ...] = ()) -> Volume:
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 4:
        raise InputError(
            f"{name} is 4D ({'×'.join(map(str, data.shape))}): give one of its volumes, for example data[..., 0] of "
            "an array or image.slicer[..., 0] of nibabel's image."
        )
    if not keep_type and data.dtype.kind in "biuf":
        data = np.asarray(data, np.float32)
    return Volume(data, matrix, name, warnings=warnings)


def _of_nibabel(given: Any, role: str) -> tuple | None:
    if not (hasattr(given, "affine") and hasattr(given, "dataobj")):
        return None
    if given.affine is None:
        raise InputError(f"The {role} image has no affine; give a pair (array, affine).")
    file = given.get_filename() if hasattr(given, "get_filename") else None
    name, matrix = _name(file, role), np.asarray(given.affine, float)
    warnings: list[str] = []
    header = given.header
    if "qform_code" in (header.keys() if hasattr(header, "keys") else ()) and np.allclose(
        matrix, header.get_best_affine(), rtol=0, atol=1e-4
    ):
        # The affine is the header's, of which Slicer and ITK may use another part than nibabel.
        from .spatial.volume_io.nifti import placed

        matrix, warnings = placed(header, given.shape, name)
    return (np.asanyarray(given.dataobj), matrix, name, *warnings)


def _of_simpleitk(given: Any, role: str) -> tuple | None:
    if not (hasattr(given, "GetDirection") and hasattr(given, "GetNumberOfComponentsPerPixel")):
        return None
    import SimpleITK as sitk

    if not isinstance(given, sitk.Image):
        return None
    if given.GetDimension() != 3 or given.GetNumberOfComponentsPerPixel() != 1:
        what = f"{given.GetDimension()}D with {given.GetNumberOfComponentsPerPixel()} numbers per voxel"
        raise InputError(f"The {role} image is {what}; a 3D image with one number per voxel is needed.")
    data = sitk.GetArrayFromImage(given).T  # ITK's arrays run k, j, i
    direction = np.array(given.GetDirection()).reshape(3, 3) * np.array(given.GetSpacing())
    return data, geometry.LPS_RAS @ geometry.from_parts(direction, given.GetOrigin()), _name(None, role)


def _name(path: str | None, role: str) -> str:
    return os.path.basename(path) if path else f"the {role} image"


def to_simpleitk_transform(matrix: np.ndarray) -> Any:
    """A 4×4 moving → fixed matrix (RAS, mm) as the SimpleITK.AffineTransform that resamples (fixed → moving, LPS)."""
    import SimpleITK as sitk

    resampling = geometry.LPS_RAS @ geometry.inverse(np.asarray(matrix, float)) @ geometry.LPS_RAS
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(resampling[:3, :3].ravel().tolist())
    transform.SetTranslation(resampling[:3, 3].tolist())
    return transform
