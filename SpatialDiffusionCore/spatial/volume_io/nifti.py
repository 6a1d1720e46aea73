"""NIfTI-1 and NIfTI-2, alone or as a pair of .hdr and .img, and Analyze 7.5.

nibabel reads the voxels. Where they lie is what ITK's own reader makes of the header, since Slicer, ANTs and SimpleITK
show the volume there: of qform and sform it takes one by rules of its own, the spacing always from pixdim, and lengths
in the unit that the header names.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Literal

import numpy as np

from ...errors import InputError
from .. import geometry
from . import numbers
from .itk import header_matrix
from .stored import Frames, Stored, corner_distance, not_3d, unreadable

EXTENSIONS = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")

#: Parts of a header that place a volume further apart than this share of its smallest voxel contradict each other.
_TOLERANCE = 0.1

#: Voxels along an axis that the header of NIfTI-1 can count.
LONGEST_AXIS = 32767

#: Degrees off the perpendicular below which ITK surely takes the sform that it is offered (its own limit is 1e-4 rad).
_PERPENDICULAR = float(np.degrees(5e-5))

#: nibabel tells its loggers what it mends in headers, which is no news for the terminal.
_SILENT = logging.Logger("headers", logging.CRITICAL + 1)

#: The entries of a header that say where a volume lies.
_GEOMETRY = ("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z") + (
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
)

#: Bytes that gzip packs into one at most.
_PACKED = 1040

#: mm in the units of length that a header may name.
_UNITS = {1: (1000.0, "meters"), 3: (0.001, "micrometers")}


def read(path: str, keep_type: bool) -> Stored:
    """Read a file; its scaling is applied. ``keep_type`` keeps the stored type where there is no scaling."""
    import nibabel

    try:
        header, proxy = _opened(nibabel, path)
        if keep_type and proxy.slope == 1 and proxy.inter == 0:
            data = np.asanyarray(proxy.get_unscaled())
        else:
            data = np.asanyarray(proxy)
    except (MemoryError, InputError):
        raise
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise unreadable(path, error, " as NIfTI") from error
    if data.ndim < 3:
        raise not_3d(path, data.shape)
    matrix, warnings = placed(header, data.shape, os.path.basename(path), path)
    return Stored(data, matrix, tuple(warnings))


def _opened(nibabel, path: str):
    """(header as it is, the voxels as nibabel's ArrayProxy). Its affine is not asked for: some headers have none."""
    kinds = (nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.Nifti1Pair, nibabel.Nifti2Pair, nibabel.AnalyzeImage)
    for kind in kinds:
        if kind.path_maybe_image(path)[0]:
            break
    else:
        raise ValueError("no header of NIfTI")
    files = kind.filespec_to_file_map(path)
    with files.get("header", files["image"]).get_prepare_fileobj("rb") as file:
        header = kind.header_class.from_fileobj(file, check=False)
    mended = header.copy()
    mended.check_fix(_SILENT, error_level=40)
    size = os.path.getsize(files["image"].filename) * (_PACKED if path.lower().endswith(".gz") else 1)
    if np.prod(mended.get_data_shape(), dtype=float) * mended.get_data_dtype().itemsize > size:
        raise EOFError("fewer bytes than voxels")
    return header, nibabel.arrayproxy.ArrayProxy(files["image"].filename, mended)


def frames(path: str, scratch) -> Frames:
    """The volumes of a 4D file; a packed one is first unpacked into ``scratch``, piece by piece."""
    import nibabel

    try:
        header, proxy = _opened(nibabel, path)
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise unreadable(path, error, " as NIfTI") from error
    source, count = numbers.of_proxy(proxy, path, scratch)
    matrix, warnings = placed(header, source.shape, os.path.basename(path), path)
    return Frames(source.shape, matrix, count, source, interval=_interval(header), warnings=tuple(warnings))


def holds_frames(path: str) -> bool:
    """Whether a file is 4D, with more than one volume, by its header alone."""
    shape = grid(path)[0]
    return len(shape) > 3 and shape[3] > 1 and math.prod(shape[4:]) == 1


def _interval(header) -> float | None:
    """Seconds from volume to volume, None where the header does not say."""
    if "xyzt_units" not in header.structarr.dtype.names:
        return None
    seconds = {8: 1.0, 16: 1e-3, 24: 1e-6, 0: 1.0}.get(int(header["xyzt_units"]) & 0x38)
    step = abs(float(header["pixdim"][4]))
    return step * seconds if seconds and 0 < step < np.inf else None


def grid(path: str) -> tuple[tuple[int, ...], np.ndarray, tuple[str, ...]]:
    """(shape of the array, 4×4 voxel → RAS matrix, warnings) by a file's header alone. Raises InputError where that is
    no good."""
    import nibabel

    try:
        header, proxy = _opened(nibabel, path)
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise unreadable(path, error, " as NIfTI") from error
    shape = tuple(int(n) for n in proxy.shape)
    matrix, warnings = placed(header, shape, os.path.basename(path), path)
    return shape, matrix, tuple(warnings)


#: Where NIfTI-1 (nifti1.h) keeps what places a volume.
_PLACE_OF_FIELDS: dict[str, tuple[str, int]] = {
    "sizeof_hdr": ("i4", 0),
    "dim": ("(8,)i2", 40),
    "pixdim": ("(8,)f4", 76),
    "xyzt_units": ("u1", 123),
    "qform_code": ("i2", 252),
    "sform_code": ("i2", 254),
    **{f"quatern_{letter}": ("f4", 256 + 4 * n) for n, letter in enumerate("bcd")},
    **{f"qoffset_{letter}": ("f4", 268 + 4 * n) for n, letter in enumerate("xyz")},
    **{f"srow_{letter}": ("(4,)f4", 280 + 16 * n) for n, letter in enumerate("xyz")},
    "magic": ("S4", 344),
}

#: Bytes of a header of NIfTI-1 and of Analyze 7.5.
_HEADER_BYTES = 348


class _PlainHeader:
    """The fields of a header that place a volume, read without nibabel; with nibabel's face."""

    def __init__(self, content: bytes):
        order: Literal["<", ">"] = "<" if int.from_bytes(content[:4], "little") == _HEADER_BYTES else ">"
        names = list(_PLACE_OF_FIELDS)
        if content[344:347] not in (b"n+1", b"ni1"):  # Analyze has other fields there
            names = ["dim", "pixdim"]
        kinds = [np.dtype(_PLACE_OF_FIELDS[name][0]).newbyteorder(order) for name in names]
        places = [_PLACE_OF_FIELDS[name][1] for name in names]
        layout = np.dtype({"names": names, "formats": kinds, "offsets": places, "itemsize": _HEADER_BYTES})
        self.structarr = np.frombuffer(content, layout, 1)[0]

    def __getitem__(self, name: str) -> Any:
        return self.structarr[name]


def header_warnings(path: str) -> tuple[str, ...]:
    """The sentences of ``placed`` about a file that ITK opens, by its header alone and without nibabel.

    None of NIfTI-2, which ITK does not open. Raises InputError where the header is no good.
    """
    lower = path.lower()
    cut = len(path) - next((len(end) for end in (".img", ".img.gz") if lower.endswith(end)), 0)
    file = path if cut == len(path) else path[:cut] + (".hdr.gz" if lower.endswith(".gz") else ".hdr")
    opener = gzip.open if file.lower().endswith(".gz") else open
    try:
        with opener(file, "rb") as stream:
            content = stream.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error, " as NIfTI") from error
    if len(content) < _HEADER_BYTES or _HEADER_BYTES not in (
        int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")
    ):  # fmt: skip
        return ()
    header = _PlainHeader(content)
    return tuple(placed(header, tuple(map(int, header["dim"][1:4])), os.path.basename(path), path)[1])


def placed(header, shape, name: str, path: str | None = None) -> tuple[np.ndarray, list[str]]:
    """(4×4 voxel → RAS matrix, sentences about what the header contradicts or leaves open).

    header: nibabel's; name: what the sentences call the volume; path: of the file that the header is in, if it is in
    one.
    """
    if "qform_code" not in header.structarr.dtype.names:
        if path is None:
            raise InputError(f"{name} is an Analyze image, which does not say where it lies; save it as NIfTI.")
        return header_matrix(path, "NiftiImageIO"), [
            f"{name} is an Analyze file, which does not say where the volume lies nor which side is left: it is placed "
            "as in Slicer and ITK, and left and right are in doubt."
        ]
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are no places are refused at the end
        return _placed(header, shape, name, path)


def _placed(header, shape, name: str, path: str | None) -> tuple[np.ndarray, list[str]]:
    """The same for NIfTI."""
    factor, unit = _UNITS.get(int(header["xyzt_units"]) & 7, (1.0, ""))
    scale = np.diag([factor, factor, factor, 1.0])
    qform, sform = _qform(header, scale), _sform(header, scale)
    used = _as_itk_reads(header, path)
    warnings = _contradictions(name, used, qform, sform, shape)
    if (np.asarray(header["pixdim"][1:4]) < 0).any():
        warnings.append(
            f"The pixdim of {name} is negative, by which Slicer and ITK mirror the volume: it is read as they show it, "
            "and left and right are in doubt."
        )
    if unit:
        warnings.append(
            f"The header of {name} gives lengths in {unit}; they were converted to mm, as in Slicer and ITK."
        )
    if _is_nifti2(header):
        warnings.append(
            f"Slicer and ITK cannot open {name}, a NIfTI-2 file; its header is read as they would read that of NIfTI-1."
        )
    if used is None:
        used = sform if sform is not None else qform
    elif sform is not None and corner_distance(used, sform, shape) < 1e-4 * geometry.spacing(used).min():
        used = sform  # the same, without the rounding of what ITK derives from it
    if used is None or not np.isfinite(used).all() or np.abs(used).max() > geometry.LARGEST:
        raise InputError(f"The header of {name} does not say where the volume lies; correct the header first.")
    return used, warnings


def _contradictions(name: str, used, qform, sform, shape) -> list[str]:
    """Sentences about parts of a header that do not go together, and which were used (None: ITK refuses all)."""
    if qform is None and sform is None:
        return [
            f"The header of {name} says neither where the volume lies nor which side is left (its qform and sform "
            "codes are 0): it is placed as in Slicer and ITK, and left and right are in doubt."
        ]
    if used is None:
        return [
            f"The axes of {name} are not perpendicular ({_skew(sform):.2g}° off), so Slicer and ITK cannot open this "
            "file; it lies where its sform says."
        ]
    warnings: list[str] = []
    tolerance = _TOLERANCE * geometry.spacing(used).min()
    if sform is None:
        return warnings
    steps = geometry.spacing(used)
    directions = sform.copy()
    directions[:3, :3] *= steps / np.maximum(geometry.spacing(sform), 1e-12)
    if qform is not None and (apart := corner_distance(qform, directions, shape)) > tolerance:
        taken = "sform" if corner_distance(used, directions, shape) < corner_distance(used, qform, shape) else "qform"
        warnings.append(
            f"The qform and the sform of {name} place it up to {apart:.2g} mm apart; the {taken} is used, "
            "as in Slicer and ITK."
        )
    if corner_distance(directions, sform, shape) > tolerance:
        numbers = [" × ".join(f"{v:.4g}" for v in values) for values in (steps, geometry.spacing(sform))]
        warnings.append(
            f"The voxels of {name} measure {numbers[0]} mm by its pixdim and {numbers[1]} mm by its sform; pixdim is "
            "used, as in Slicer and ITK."
        )
    return warnings


def _skew(matrix: np.ndarray) -> float:
    """By how many degrees the axes miss being perpendicular."""
    axes = matrix[:3, :3] / np.maximum(geometry.spacing(matrix), 1e-300)
    return float(np.degrees(np.arcsin(min(1.0, np.abs(axes.T @ axes - np.eye(3)).max()))))


def is_perpendicular(matrix: np.ndarray) -> bool:
    """Whether the axes of a 4×4 voxel → RAS matrix are as perpendicular as ITK wants those of a NIfTI file."""
    return _skew(matrix) <= _PERPENDICULAR


def _as_itk_reads(header, path: str | None) -> np.ndarray | None:
    """Voxel → RAS as ITK's reader has it, None where it refuses the header (a sheared sform without a qform)."""
    if path is not None and not _is_nifti2(header):
        try:
            return header_matrix(path, "NiftiImageIO")
        except RuntimeError:
            pass  # for what the header says, or for the name of the file or the type of the voxels
    import nibabel

    plain = nibabel.Nifti1Header()
    with np.errstate(over="ignore"):  # NIfTI-2 has numbers that NIfTI-1 takes for infinite
        for key in _GEOMETRY:
            plain[key] = header[key]
    plain.set_data_dtype(np.uint8)
    plain["dim"] = [3, *np.clip(header["dim"][1:4], 1, 32767), 1, 1, 1, 1]
    plain["vox_offset"], plain["magic"] = 352, b"n+1"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "header.nii")
        copy.write_bytes(plain.binaryblock + bytes(4))
        try:
            return header_matrix(str(copy), "NiftiImageIO")
        except RuntimeError:
            return None


def _is_nifti2(header) -> bool:
    return header.structarr.dtype["srow_x"].base.itemsize == 8


def _qform(header, scale: np.ndarray) -> np.ndarray | None:
    """Voxel → RAS by the quaternion (the standard's method 2), None where its code is 0."""
    if int(header["qform_code"]) <= 0:
        return None
    b, c, d = (float(header[f"quatern_{letter}"]) for letter in "bcd")
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:  # rounded to a little more than 1: the rotation is by 180°
        length = max(np.sqrt(b * b + c * c + d * d), 1e-12)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = np.sqrt(rest)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    steps = np.asarray(header["pixdim"][1:4], float)
    steps = np.where(steps > 0, steps, 1.0)  # as ITK's library does
    steps[2] *= -1.0 if float(header["pixdim"][0]) < 0 else 1.0
    origin = [float(header[f"qoffset_{letter}"]) for letter in "xyz"]
    return scale @ geometry.from_parts(rotation * steps, origin)


def _sform(header, scale: np.ndarray) -> np.ndarray | None:
    """Voxel → RAS by the three rows, None where their code is 0."""
    if int(header["sform_code"]) <= 0:
        return None
    rows = [np.asarray(header[f"srow_{letter}"], float) for letter in "xyz"]
    return scale @ np.vstack([*rows, [0.0, 0.0, 0.0, 1.0]])


def image_of(data: np.ndarray, voxel_to_ras: np.ndarray) -> Any:
    """The nibabel.Nifti1Image of an (I, J, K) array, in millimeters and scanner space.

    A sheared header goes into the sform alone: with the nearest qform beside it, Slicer would show the volume there,
    elsewhere than this program does; so it refuses the file. Raises InputError for more voxels than NIfTI-1 can count.
    """
    import nibabel

    if max(data.shape) > LONGEST_AXIS:
        raise InputError(f"NIfTI holds at most {LONGEST_AXIS} voxels along an axis; write .nrrd instead.")
    image = nibabel.Nifti1Image(data, voxel_to_ras, dtype=data.dtype)
    image.set_sform(voxel_to_ras, code="scanner")
    if is_perpendicular(voxel_to_ras):
        image.set_qform(voxel_to_ras, code="scanner", strip_shears=True)
    else:
        image.set_qform(None, code="unknown")
    image.header.set_xyzt_units("mm")
    return image


@contextmanager
def written_frames(
    path: str, grid: Any, count: int, dtype: Any, step: tuple[float, str] = (1.0, "sec")
) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that writes the next volume of a 4D file of NIfTI-1, so that memory is that of one.

    grid: shape (I, J, K) and voxel_to_ras of each (a Volume or Grid); count: how many there will be; dtype: of the
    numbers; step: time from one to the next, and its unit. Raises InputError for more than NIfTI-1 can count.
    """
    if count > LONGEST_AXIS:
        raise InputError(f"NIfTI holds at most {LONGEST_AXIS} volumes in a file; there are {count}.")
    header = image_of(np.broadcast_to(np.zeros(1, dtype), grid.shape), grid.voxel_to_ras).header
    steps = header.get_zooms()[:3]
    header.set_data_shape((*grid.shape, count))
    header.set_zooms((*steps, step[0]))
    header.set_xyzt_units("mm", step[1])
    header.set_slope_inter(1.0, 0.0)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "wb"))
        if path.lower().endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0))
        file.write(header.binaryblock + bytes(4))
        yield lambda data: file.write(np.asarray(data, header.get_data_dtype()).tobytes(order="F"))


def write(data: np.ndarray, voxel_to_ras: np.ndarray, path: str) -> None:
    """Write an (I, J, K) array as NIfTI-1 (see ``image_of``)."""
    import nibabel

    nibabel.save(image_of(data, voxel_to_ras), path)
