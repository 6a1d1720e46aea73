"""AFNI's .aff12.1D: fixed → moving in LPS, twelve numbers in a line.

AFNI's registration takes the axes of an oblique volume for those of the scanner that are nearest to them, with the
first voxel where it is; its matrices relate volumes that are laid down so. Both ways therefore need the volumes, where
they are oblique: without them the matrix is taken for one between volumes that are not.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from ...errors import InputError
from ..geometry import LPS_RAS, as_affine, from_parts, inverse, spacing
from .text import numbers, several, text_of

#: Below this angle (degrees) AFNI takes a volume for one along the scanner's axes.
_OBLIQUE = 0.01

_BANNER = "# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n"


def read(content: bytes, path, moving, fixed) -> np.ndarray:
    """The matrix in a file of AFNI, of twelve numbers in one line or in three."""
    lines = [line for line in text_of(content).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    values = [numbers(line.replace(",", " ").split(), path) for line in lines]
    counts = [len(line) for line in values]
    if counts != [12] and counts != [4, 4, 4]:
        if set(counts) == {12}:
            raise several(path)
        raise InputError(f"'{path}' is no matrix of AFNI: expected one line of twelve numbers, or three lines of four.")
    matrix = as_affine(np.reshape(sum(values, []), (3, 4)), f"The matrix in '{path}'")
    resampling = _laid_down(moving, back=True) @ LPS_RAS @ matrix @ LPS_RAS @ _laid_down(fixed)
    return as_affine(inverse(resampling), f"The matrix in '{path}'")


def written(matrices: np.ndarray, moving, fixed) -> bytes:
    """The content of a file for AFNI: a line for the 4×4 matrix, or for each of N×4×4 (those of a series)."""
    lines = []
    for matrix in np.reshape(matrices, (-1, 4, 4)):
        resampling = _laid_down(moving) @ inverse(matrix) @ _laid_down(fixed, back=True)
        values = (LPS_RAS @ resampling @ LPS_RAS)[:3].ravel() + 0.0
        lines.append(" ".join(repr(float(value)) for value in values) + "\n")
    return (_BANNER + "".join(lines)).encode()


def _laid_down(volume, back: bool = False) -> np.ndarray:
    """From where a volume lies to where AFNI lays it down along the scanner's axes (4×4, RAS); identity where it is
    so."""
    if volume is None:
        return np.eye(4)
    matrix = as_affine(volume.voxel_to_ras, "The voxel → RAS matrix")
    steps = spacing(matrix)
    axes = matrix[:3, :3] / steps
    if np.degrees(np.arccos(np.clip(np.abs(axes).max(axis=0), 0, 1))).max() <= _OBLIQUE:
        return np.eye(4)
    laid = from_parts(_nearest_axes(axes) * steps, matrix[:3, 3]) @ inverse(matrix)
    return inverse(laid) if back else laid


def _nearest_axes(cosines: np.ndarray) -> np.ndarray:
    """The signed permutation (3×3) nearest to direction cosines, whatever they are turned by."""
    rows = max(permutations(range(3)), key=lambda one: sum(abs(cosines[row, axis]) for axis, row in enumerate(one)))
    result = np.zeros((3, 3))
    for axis, row in enumerate(rows):
        result[row, axis] = np.sign(cosines[row, axis]) or 1.0
    return result
