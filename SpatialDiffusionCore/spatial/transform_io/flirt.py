"""FSL's FLIRT (.mat): moving → fixed in FSL's scaled voxels, which means nothing without both images."""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from ..geometry import as_affine, spacing
from .text import matrix_in, rows, text_of


def read(content: bytes, path, moving, fixed) -> np.ndarray:
    """The matrix in a file of FLIRT; InputError without both volumes."""
    matrix = matrix_in(text_of(content).splitlines(), path)
    moving_scaled, fixed_scaled = _both_scaled(path, moving, fixed)
    return as_affine(np.linalg.inv(fixed_scaled) @ matrix @ moving_scaled, f"The matrix in '{path}'")


def written(matrix: np.ndarray, path, moving, fixed) -> bytes:
    """The content of a file for FLIRT; InputError without both volumes."""
    moving_scaled, fixed_scaled = _both_scaled(path, moving, fixed)
    return rows(fixed_scaled @ matrix @ np.linalg.inv(moving_scaled)).encode()


def _both_scaled(path, moving, fixed) -> tuple[np.ndarray, np.ndarray]:
    """RAS → FSL's scaled voxels (4×4) of moving and of fixed."""
    missing = [role for role, volume in (("moving", moving), ("fixed", fixed)) if volume is None]
    if missing:
        raise InputError(
            f"A FLIRT matrix ('{path}') means nothing without its two images; give the "
            f"{' and the '.join(missing)} image."
        )
    return _scaled_from_ras(moving), _scaled_from_ras(fixed)


def _scaled_from_ras(volume) -> np.ndarray:
    """RAS → FSL's scaled voxels: voxel × spacing, the first axis reversed where det(voxel → RAS) > 0."""
    voxel_to_ras = as_affine(volume.voxel_to_ras, "The voxel → RAS matrix")
    steps = spacing(voxel_to_ras)
    scaled = np.diag([*steps, 1.0])
    if np.linalg.det(voxel_to_ras) > 0:
        scaled[0] = [-steps[0], 0.0, 0.0, (volume.shape[0] - 1) * steps[0]]
    return scaled @ np.linalg.inv(voxel_to_ras)
