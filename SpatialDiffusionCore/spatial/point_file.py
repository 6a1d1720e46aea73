"""Points and surfaces in files: markups and models of 3D Slicer and others, moved by a transform."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from ..files import written_whole
from . import geometry
from .point_io import markups, ply, stl, vtk_legacy, vtp
from .point_io.motion import Motion

#: What moves the content of a file, by its extension.
_MOVERS: dict[str, Callable] = {
    ".mrk.json": markups.moved_json,
    ".fcsv": markups.moved_fcsv,
    ".vtk": vtk_legacy.moved,
    ".vtp": vtp.moved,
    ".vtu": vtp.moved,
    ".stl": stl.moved,
    ".ply": ply.moved,
}

EXTENSIONS = tuple(_MOVERS)


def extension_of(path) -> str | None:
    """Which of ``EXTENSIONS`` a file has, None where it holds no points."""
    name = os.path.basename(os.fspath(path)).lower()
    return next((ending for ending in EXTENSIONS if name.endswith(ending)), None)


def move_points(source, target, matrix) -> None:
    """Write the points or surface of ``source``, moved by ``matrix`` (4×4, moving → fixed, RAS mm), to ``target``.

    Both have the same extension. Points, normals and vectors are moved; all else is kept, the file's own frame (RAS or
    LPS) too. Raises InputError where a file cannot be read or written, or holds what an affine does not keep.
    """
    ending = extension_of(source)
    if ending is None:
        raise InputError(f"'{source}' is no known file of points; use one of: {', '.join(EXTENSIONS)}.")
    if extension_of(target) != ending:
        raise InputError(f"'{target}' must end in {ending}, as '{source}' does; points are kept in their format.")
    try:
        content = Path(source).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{source} does not exist.") from None
    except OSError as error:
        raise InputError(f"Cannot read '{source}' ({(error.strerror or str(error)).lower()}).") from error
    moved = _MOVERS[ending](content, Motion(geometry.as_affine(matrix, "the transform")), source)
    with written_whole(target) as temporary:
        temporary.write_bytes(moved)
