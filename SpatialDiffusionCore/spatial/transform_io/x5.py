"""X5 (.x5), the format of nitransforms in HDF5: fixed → moving in RAS, with the fixed volume's grid."""

from __future__ import annotations

import io

import numpy as np

from ...errors import InputError
from ..geometry import as_affine, inverse
from . import hdf5
from .text import ONLY_LINEAR, damaged, several


def _h5py(path):
    try:
        import h5py
    except ImportError:
        raise InputError(f"'{path}' needs h5py; install it with: pip install h5py.") from None
    return h5py


def read(content: bytes, path) -> np.ndarray:
    """The matrix in an X5 file of one linear transform."""
    h5py = _h5py(path)
    hdf5.check(content, path)
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            if file.attrs.get("Format") not in ("X5", b"X5"):
                raise InputError(f"'{path}' is not an X5 file, whatever its name says; give it its true extension.")
            entries = file["TransformGroup"]
            if len(entries) != 1:
                raise several(path)
            entry = next(iter(entries.values()))
            if entry.attrs["Type"] not in ("linear", b"linear"):
                raise InputError(f"'{path}' holds a non-linear transform; {ONLY_LINEAR}.")
            matrix = np.array(entry["Transform"], float)
    except InputError:
        raise
    except Exception:  # h5py raises whatever the damage leads to: AttributeError and OverflowError, too
        raise damaged(path) from None
    if matrix.ndim == 3 and len(matrix) > 1:
        raise several(path)
    return as_affine(inverse(as_affine(matrix.reshape(matrix.shape[-2:]), f"The matrix in '{path}'")))


def written(matrix: np.ndarray, path, fixed) -> bytes:
    """The content of an X5 file; the fixed volume's grid is its domain where it is given."""
    h5py = _h5py(path)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["Format"], file.attrs["Version"] = "X5", np.uint16(1)
        entry = file.create_group("TransformGroup/0")
        entry.attrs["Type"], entry.attrs["SubType"], entry.attrs["Representation"] = "linear", "affine", "matrix"
        entry.attrs["ArrayLength"] = 1
        entry.create_dataset("Transform", data=inverse(matrix))
        entry.create_dataset("DimensionKinds", data=np.array(["space", "space", "space", "vector"], dtype="S"))
        if fixed is not None:
            domain = entry.create_group("Domain")
            domain.attrs["Coordinates"] = "cartesian"
            domain.create_dataset("Grid", data=np.uint8(1))
            domain.create_dataset("Size", data=np.array(fixed.shape[:3]))
            domain.create_dataset("Mapping", data=np.asarray(fixed.voxel_to_ras, float))
    return buffer.getvalue()
