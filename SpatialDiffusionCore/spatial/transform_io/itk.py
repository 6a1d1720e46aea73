"""ITK's transforms (.tfm, .txt, .mat, .h5), which 3D Slicer, ANTs and SimpleITK read.

They hold the map that resamples, fixed → moving, in LPS; the center is honored.
"""

from __future__ import annotations

import atexit
import re
import struct
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..geometry import as_affine
from ..volume_io.itk import quiet_itk, silence_libraries
from . import hdf5
from .text import ONLY_LINEAR, damaged, finite, numbers, several, text_of, to_lps_inverse

# How many parameters ITK's linear types have: where some are missing, ITK may read past the end of the list.
_PARAMETERS = {
    "AffineTransform": 12,
    "CenteredAffineTransform": 15,
    "CenteredEuler3DTransform": 9,
    "ComposeScaleSkewVersor3DTransform": 12,
    "Euler3DTransform": 6,
    "FixedCenterOfRotationAffineTransform": 12,
    "IdentityTransform": 0,
    "MatrixOffsetTransformBase": 12,
    "QuaternionRigidTransform": 7,
    "ScalableAffineTransform": 12,
    "ScaleLogarithmicTransform": 3,
    "ScaleSkewVersor3DTransform": 15,
    "ScaleTransform": 3,
    "ScaleVersor3DTransform": 9,
    "Similarity3DTransform": 7,
    "TranslationTransform": 3,
    "VersorRigid3DTransform": 6,
    "VersorTransform": 3,
}


def read(content: bytes, kind: str, path) -> np.ndarray:
    """The matrix in a file of ITK; kind: its way of storing, "hdf5", "text" or "matlab"."""
    return to_lps_inverse(_resampling(content, kind, path))


def written(matrix: np.ndarray, ending: str) -> bytes:
    """The content of a file of the given extension, as AffineTransform with center 0."""
    resampling = to_lps_inverse(matrix)
    with quiet_itk() as sitk:
        transform = sitk.AffineTransform(3)
        transform.SetMatrix((resampling[:3, :3] + 0.0).ravel().tolist())
        transform.SetTranslation((resampling[:3, 3] + 0.0).tolist())
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, f"transform{ending}")
            sitk.WriteTransform(transform, str(copy))
            return copy.read_bytes()


def _resampling(content: bytes, kind: str, path) -> np.ndarray:
    """The 4×4 LPS matrix of an ITK file, as ITK maps points with it.

    Text and MATLAB files are parsed here and handed to ITK as a composite. Left to itself, ITK drops
    without a word all transforms but the first, parameters that no fixed ones follow, and numbers too many;
    and SimpleITK cannot load some linear types outside a composite.
    """
    if kind == "hdf5":
        hdf5.check(content, path)
        transform = _itk_transform(content, ".h5", path)
        # ITK stores no count, but the name of each type appears once; a composite names itself and its parts.
        names = re.findall(rb"\w+_(?:double|float)_\d_\d", content)
        if len(names) > 1 and not any(name.startswith(b"CompositeTransform") for name in names):
            raise several(path)
        return _linear(transform, path)
    entries = _parse_text(text_of(content), path) if kind == "text" else _parse_matlab(content, path)
    composite = bool(entries) and entries[0][0].startswith("CompositeTransform")
    entries = [entry for entry in entries if not entry[0].startswith("CompositeTransform")]
    if not entries:
        raise InputError(f"'{path}' holds no transform; write it again with the program it is from.")
    if len(entries) > 1 and not composite:
        raise several(path)
    lines = ["#Insight Transform File V1.0", "#Transform 0", "Transform: CompositeTransform_double_3_3"]
    for index, (name, parameters, fixed_parameters) in enumerate(entries, start=1):
        base, _, dimension = name.partition("_")
        if not dimension.endswith("3_3"):
            raise InputError(f"'{path}' holds '{name}', which is not three-dimensional; give a 3D one.")
        if len(parameters) != _PARAMETERS.get(base, len(parameters)):
            raise InputError(
                f"The {base} in '{path}' has {len(parameters)} parameters, expected {_PARAMETERS[base]}; "
                "write it again."
            )
        values = [" ".join(repr(value) for value in given) for given in (parameters, fixed_parameters)]
        lines += [f"#Transform {index}", f"Transform: {base}_double_3_3"]
        lines += [f"Parameters: {values[0]}", f"FixedParameters: {values[1]}"]
    return _linear(_itk_transform(("\n".join(lines) + "\n").encode(), ".tfm", path), path)


def _parse_text(text: str, path) -> list[tuple[str, list[float], list[float]]]:
    """(type, parameters, fixed parameters) of each transform in an ITK text file."""
    entries: list[dict] = []
    for line in text.splitlines():
        tag, colon, value = line.partition(":")
        tag, value = tag.strip(), value.strip()
        if not colon or tag.startswith("#"):
            continue
        if tag == "Transform":
            entries.append({"Transform": value})
        elif tag in ("Parameters", "FixedParameters") and entries:
            entries[-1][tag] = finite(numbers(value.split(), path), path)
    for entry in entries:
        for tag in ("Parameters", "FixedParameters"):
            if tag not in entry and not entry["Transform"].startswith("CompositeTransform"):
                raise InputError(
                    f"The {entry['Transform'] or 'transform'} in '{path}' has no line '{tag}:'; add it "
                    "(the fixed parameters of a transform without center are 0 0 0)."
                )
    return [(one["Transform"], one.get("Parameters", []), one.get("FixedParameters", [])) for one in entries]


def _parse_matlab(content: bytes, path) -> list[tuple[str, list[float], list[float]]]:
    """(type, parameters, fixed parameters) of each transform in ITK's MATLAB file.

    It is MATLAB's level 4: for each array a header of five 32-bit integers (type, rows, columns, is it
    complex, length of the name), the name, and the numbers. Type 0 is float64 and type 10 float32,
    little-endian. The arrays are named, by turns, after the type of transform and "fixed".
    """
    arrays, position = [], 0
    while position < len(content):
        try:
            kind, rows, columns, is_complex, length = struct.unpack_from("<5i", content, position)
            number = {0: "<f8", 10: "<f4"}[kind]
            if is_complex or min(rows, columns) < 0 or length < 1:
                raise ValueError
            name = content[position + 20 : position + 20 + length].rstrip(b"\0").decode("ascii")
            values = np.frombuffer(content, number, rows * columns, position + 20 + length)
        except (struct.error, KeyError, ValueError):
            raise damaged(path) from None
        arrays.append((name, finite(values.astype(float).tolist(), path)))
        position += 20 + length + values.nbytes
    if len(arrays) % 2 or any(name != "fixed" for name, _ in arrays[1::2]):
        raise InputError(f"'{path}' is a MATLAB file but holds no transform of ITK; choose another file.")
    return [(name, values, fixed) for (name, values), (_, fixed) in zip(arrays[::2], arrays[1::2])]


def _itk_transform(content: bytes, ending: str, path):
    # A copy, because ITK goes by extensions, in lower case only.
    with quiet_itk() as sitk, tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f"transform{ending}")
        copy.write_bytes(content)
        try:
            return sitk.ReadTransform(str(copy))
        except Exception as error:  # SimpleITK raises more than RuntimeError here
            if ending == ".h5":
                _let_hdf5_end_silently()
            found = sorted(set(re.findall(r"(\w+?)_(?:double|float)_\d_\d", content.decode("latin-1"))))
            names = " + ".join(name for name in found if name != "CompositeTransform") or "transform"
            raise InputError(
                f"ITK cannot load the {names} in '{path}' (an unknown type, or a wrong number of values); "
                "save it again as an affine transform."
            ) from error


@lru_cache(maxsize=1)
def _let_hdf5_end_silently() -> None:
    """After a damaged file HDF5 complains when the process ends, which tells nobody anything."""
    atexit.register(silence_libraries)


def _linear(transform, path) -> np.ndarray:
    """The 4×4 matrix of a SimpleITK transform, by mapping points: the same for every type and any center."""
    if transform.GetDimension() != 3:
        raise InputError(f"'{path}' holds a {transform.GetDimension()}D transform; give a 3D one.")
    if not transform.IsLinear():
        raise InputError(f"'{path}' holds a non-linear transform; {ONLY_LINEAR}.")
    matrix = np.eye(4)
    matrix[:3, 3] = transform.TransformPoint([0.0, 0.0, 0.0])
    reach = 1024.0
    for axis in range(3):
        point = np.zeros(3)
        point[axis] = reach
        ahead, behind = transform.TransformPoint(point.tolist()), transform.TransformPoint((-point).tolist())
        matrix[:3, axis] = (np.array(ahead) - np.array(behind)) / (2 * reach)
    return as_affine(matrix, f"The matrix in '{path}'")
