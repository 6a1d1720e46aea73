"""What a reader finds in a file, and what is common to the readers."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError

#: What the readers' messages about files that end too early have in common.
_CUT_OFF = re.compile(
    r"end-of-stream|unexpected end|EOF|could the file be damaged|greater than file size|not read completely"
    r"|premature|truncat|expected \d+ bytes|incomplete"
    r"|Reason: (Success|No error|Undefined error)",  # ITK's MetaImage, where the system saw nothing but the end
    re.IGNORECASE,
)


#: What ITK says of headers whose voxels no memory holds.
_TOO_MANY = re.compile(r"bad_alloc|[Ff]ailed to allocate|Unable to allocate|not enough memory")


@dataclass(frozen=True)
class Stored:
    """The content of a file.

    data: array of numbers, (I, J, K) or with further axes behind. voxel_to_ras: 4×4 float64, voxel centers → RAS mm.
    warnings: sentences about the header. frames: what a fourth axis counts, for messages.
    """

    data: np.ndarray
    voxel_to_ras: np.ndarray
    warnings: tuple[str, ...] = ()
    frames: str = "volumes"


@dataclass(frozen=True)
class Frames:
    """The volumes of a series, read one at a time by ``source.read(index)`` (float32, I×J×K).

    shape: voxels of each; voxel_to_ras: 4×4 float64, voxel centers → RAS mm; interval: seconds from one to the next,
    where the file says it; warnings: sentences about the header. Picklable: another process reads the same files.
    """

    shape: tuple[int, ...]
    voxel_to_ras: np.ndarray
    count: int
    source: Any
    interval: float | None = None
    warnings: tuple[str, ...] = ()


def not_3d(path: str, shape: Sequence[int]) -> InputError:
    """The sentence about a file whose array is no volume, nor several."""
    what = "the numbers of its voxels as a fifth axis" if len(shape) > 4 else f"{len(shape)} axes"
    return InputError(
        f"{path} is not a 3D volume: its array has shape {'×'.join(map(str, shape))}, with {what}; export one with "
        "three axes, or several of them with four."
    )


def unreadable(path: str, error: BaseException, what: str = "") -> InputError:
    """The sentence about a file that a reader refuses."""
    reason = first_line(error)
    other = other_content(path)
    if other is not None:
        return InputError(f"{path} cannot be read{what}: {other}.")
    if _CUT_OFF.search(str(error)) or isinstance(error, EOFError):
        return InputError(f"{path} is truncated: it ends before the last of its voxels; copy or export it again.")
    if _TOO_MANY.search(str(error)):
        return InputError(
            f"{path} holds more voxels by its header than there is memory for; if it should not, it is damaged: copy "
            "or export it again."
        )
    return InputError(f"{path} cannot be read{what} ({reason}); copy or export it again.")


#: How files of each kind begin: (byte, what is there, what they are, the ending that says so, others that fit).
_BEGINNINGS = (
    (0, b"NRRD", "a NRRD file", ".nrrd", (".nhdr",)),
    (0, b"ObjectType", "a MetaImage file", ".mha", (".mhd",)),
    (344, b"n+1\0", "a NIfTI file", ".nii", ()),
    (344, b"ni1\0", "a header of NIfTI", ".hdr", (".img",)),
    (4, b"n+2\0", "a NIfTI file", ".nii", ()),
    (128, b"DICM", "a DICOM file", ".dcm", ()),
)


def other_content(path: str) -> str | None:
    """That a file's name does not fit its content, and what to call it; None where nothing speaks for that."""
    try:
        with open(path, "rb") as file:
            start = file.read(352)
        packed = start[:2] == b"\x1f\x8b"
        if packed:
            with gzip.open(path) as file:
                start = file.read(352)
    except (OSError, EOFError, zlib.error):
        return None
    name = path.lower()
    if start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "it holds a web page, as failed downloads do; download it again"
    for byte, words, kind, ending, fitting in _BEGINNINGS:
        if start[byte : byte + len(words)] != words:
            continue
        fits = name.endswith(tuple(one + ".gz" * packed for one in (ending, *fitting)))
        if fits:
            return None
        if packed and not ending.startswith((".nii", ".hdr")):
            return f"it holds {kind} packed by gzip; unpack it, and let its name end in {ending}"
        how = " packed by gzip" if packed else " that is not packed" if name.endswith(".gz") else ""
        return f"it holds {kind}{how}; let its name end in {ending}{'.gz' * packed}"
    return None


def first_line(error: BaseException) -> str:
    """The last line of an error's message, where ITK says what is wrong, without the names of its functions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = re.sub(r"^(\[\w+\] *)?_?\w+: +", "", lines[-1])[:200].rstrip(".!") or lines[-1][:200]
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def corner_distance(a: np.ndarray, b: np.ndarray, shape) -> float:
    """The largest distance in mm between the corners of a volume of ``shape`` under two 4×4 voxel → RAS matrices."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[:3]) - 1)
    difference = a - b
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())
