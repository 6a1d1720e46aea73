"""What a reader finds in a file, and what is common to the readers."""

from __future__ import annotations

import re
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


def unreadable(path: str, error: BaseException, what: str = "") -> InputError:
    """The sentence about a file that a reader refuses."""
    reason = first_line(error)
    if _CUT_OFF.search(str(error)) or isinstance(error, EOFError):
        return InputError(f"{path} is truncated: it ends before the last of its voxels; copy or export it again.")
    if _TOO_MANY.search(str(error)):
        return InputError(
            f"{path} holds more voxels by its header than there is memory for; if it should not, it is damaged: copy "
            "or export it again."
        )
    return InputError(f"{path} cannot be read{what} ({reason}).")


def first_line(error: BaseException) -> str:
    """The last line of an error's message, where ITK says what is wrong, without the names of its functions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return re.sub(r"^(\[\w+\] *)?_?\w+: +", "", lines[-1])[:200].rstrip(".!") or lines[-1][:200]


def corner_distance(a: np.ndarray, b: np.ndarray, shape) -> float:
    """The largest distance in mm between the corners of a volume of ``shape`` under two 4×4 voxel → RAS matrices."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[:3]) - 1)
    difference = a - b
    return float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())
