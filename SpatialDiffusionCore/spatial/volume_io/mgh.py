"""FreeSurfer's .mgh and .mgz."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from . import numbers
from .stored import Frames, Stored, unreadable

EXTENSIONS = (".mgh", ".mgz")


def read(path: str) -> Stored:
    """Read a file; its header places it in scanner RAS, as ``mri_info --vox2ras`` says."""
    try:
        image = _opened(path)
        data = np.asanyarray(image.dataobj)
        placed = _is_placed(image)
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise unreadable(path, error, " as a volume of FreeSurfer") from error
    return Stored(data, image.affine, _warnings(path, placed))


def frames(path: str, scratch) -> Frames:
    """The volumes of a 4D file; a packed one is first unpacked into ``scratch``, piece by piece."""
    try:
        image = _opened(path)
        placed, interval = _is_placed(image), _interval(image.header)
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise unreadable(path, error, " as a volume of FreeSurfer") from error
    source, count = numbers.of_proxy(image.dataobj, path, scratch)
    return Frames(source.shape, image.affine, count, source, interval, _warnings(path, placed))


def holds_frames(path: str) -> bool:
    """Whether a file is 4D, with more than one volume, by its header alone."""
    try:
        shape = _opened(path).shape
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise unreadable(path, error, " as a volume of FreeSurfer") from error
    return len(shape) == 4 and shape[3] > 1


def _opened(path: str) -> Any:
    """nibabel's image; what it says of damaged headers by its logger is no news for the terminal."""
    import nibabel
    from nibabel.imageglobals import logger

    before, logger.disabled = logger.disabled, True
    try:
        return nibabel.load(path)
    finally:
        logger.disabled = before


def _interval(header: Any) -> float | None:
    """Seconds from volume to volume; the header has milliseconds."""
    steps = header.get_zooms()[3:]
    return float(steps[0]) / 1000 if steps and 0 < float(steps[0]) < np.inf else None


def _is_placed(image: Any) -> bool:
    """Whether the header says so (goodRASFlag, which nibabel sets in its own header)."""
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        return file.read(30)[28:] != b"\0\0"


def _warnings(path: str, placed: bool) -> tuple[str, ...]:
    if placed:
        return ()
    name = os.path.basename(path)
    return (
        f"The header of {name} does not say where the volume lies: it is taken for coronal slices as FreeSurfer "
        "does, and left and right are in doubt.",
    )
