"""Series of frames: a 4D NIfTI or NRRD file, a folder of volumes, or a folder of DICOM files; read one frame at a time.

Each format's reader (spatial/volume_io) says how: what is packed is first laid into a scratch folder piece by piece, so
that memory stays that of a frame, however many there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import extension
from ..spatial import geometry
from ..spatial.volume import Volume
from ..spatial.volume_file import ITK_IMAGES, check_not_empty, load
from ..spatial.volume_io import dicom, itk, mgh, nifti, numbers
from ..spatial.volume_io.stored import Frames

#: Where header matrices of one series may differ: in voxels, at the corners.
SAME_PLACE = 1e-2

#: What opens a file of frames, by its extension.
_READERS: dict[str, Callable[[str, Any], Frames]] = {
    **dict.fromkeys(nifti.EXTENSIONS, nifti.frames),
    **dict.fromkeys(ITK_IMAGES, itk.frames),
    **dict.fromkeys(mgh.EXTENSIONS, mgh.frames),
}


@dataclass
class Series:
    """Frames on one voxel grid.

    shape: voxels (I, J, K) of each; voxel_to_ras: 4×4, RAS mm; count: how many; interval: seconds from frame to frame
    (None where the files don't say); source: what reads frame N (``source.read``); warnings: sentences about headers.
    Picklable: another process reads the same files.
    """

    name: str
    shape: tuple[int, ...]
    voxel_to_ras: np.ndarray
    count: int
    interval: float | None
    source: Any
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def on_disk(self, scratch=None) -> Series:
        """The same series, not in memory: other processes read it from a scratch file instead of being sent it."""
        if not isinstance(self.source, _InMemory):
            return self
        arrays = (self.frame(index) for index in range(self.count))
        return replace(self, source=numbers.written_down(arrays, self.shape, scratch))

    def frame(self, index: int) -> np.ndarray:
        """Frame ``index`` (from 0) as a float32 array I×J×K."""
        return self.source.read(index)

    def volume(self, index: int) -> Volume:
        """Frame ``index`` as a Volume."""
        return Volume(self.frame(index), self.voxel_to_ras, f"frame {index} of {self.name}")


@dataclass(frozen=True)
class _InMemory:
    """Frames that are Volumes already."""

    volumes: list[Volume]

    def read(self, index: int) -> np.ndarray:
        return np.asarray(self.volumes[index].data, np.float32)


@dataclass(frozen=True)
class _Files:
    """A file for each frame."""

    paths: list[str]

    def read(self, index: int) -> np.ndarray:
        return np.asarray(load(self.paths[index]).data, np.float32)


def open_series(source, scratch=None) -> Series:
    """Open a series: a path (4D NIfTI, NRRD or MetaImage; a folder of volumes or of DICOM files), Volumes, or a Series.

    scratch: a folder for what must be unpacked (default: the system's). Raises InputError (one sentence) where frames
    differ in shape or place, or there is only one.
    """
    if isinstance(source, Series):
        return _checked(source)
    if isinstance(source, (list, tuple)):
        return _checked(_of_volumes(source))
    path = os.path.abspath(os.fspath(source))  # other processes may work in another folder
    name = os.path.basename(path)
    if os.path.isdir(path):
        return _checked(_of_folder(path, name, scratch))
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; give a 4D file, a folder of volumes or a folder of DICOM files.")
    check_not_empty(path)
    reader = _READERS.get(extension(path))
    if reader is None and (extension(path) in dicom.EXTENSIONS or dicom.looks_like(path)):
        reader = dicom.frames
    if reader is None:
        raise InputError(f"{path} is not a known series; use one of: {', '.join(_READERS)}, or a folder.")
    return _checked(_of(name, reader(path, scratch), path))


def _of(name: str, found: Frames, path: str) -> Series:
    matrix = geometry.as_affine(found.voxel_to_ras, f"the header of {path}")
    return Series(name, found.shape, matrix, found.count, found.interval, found.source, found.warnings)


def _checked(series: Series) -> Series:
    if series.count < 2:
        raise InputError(f"{series.name} holds one frame; a series has two at least (use register for two volumes).")
    if min(series.shape) < 4:
        raise InputError(
            f"The frames of {series.name} have {'×'.join(map(str, series.shape))} voxels; "
            "at least 4 are needed along each axis."
        )
    steps = series.voxel_to_ras[:3, :3] / geometry.spacing(series.voxel_to_ras)
    if np.abs(steps.T @ steps - np.eye(3)).max() > 1e-3:
        raise InputError(f"The header of {series.name} is sheared; resample it on a rectangular grid first.")
    return series


def _of_volumes(volumes: Sequence) -> Series:
    if not volumes:
        raise InputError("The series is empty; give two volumes at least.")
    for index, one in enumerate(volumes):
        if not isinstance(one, Volume):
            raise InputError(f"Frame {index} is no Volume but {type(one).__name__}; load it first.")
        _same_grid(volumes[0], one, "the series")
    first = volumes[0]
    warnings = tuple(dict.fromkeys(words for volume in volumes for words in volume.warnings))
    return Series("series", first.shape, first.voxel_to_ras, len(volumes), None, _InMemory(list(volumes)), warnings)


def _same_grid(first: Volume, other: Volume, series: str) -> None:
    if first.shape != other.shape:
        shapes = ("×".join(map(str, one.shape)) for one in (first, other))
        raise InputError(
            f"The frames of {series} differ: {first.name} has {next(shapes)} voxels, {other.name} has {next(shapes)}; "
            "a series has one shape (use group instead)."
        )
    apart = np.linalg.inv(first.voxel_to_ras) @ other.voxel_to_ras - np.eye(4)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(first.shape) - 1)
    if np.abs(corners @ apart[:3, :3].T + apart[:3, 3]).max() > SAME_PLACE:
        raise InputError(
            f"{first.name} and {other.name} lie on different voxel grids, so they are no frames of one series; "
            "use group instead."
        )


def _of_folder(path: str, name: str, scratch) -> Series:
    files = sorted((f for f in Path(path).iterdir() if f.is_file() and not f.name.startswith(".")), key=_natural)
    paths = [os.fspath(f) for f in files if extension(f) in _READERS and not _data_of_a_header(f)]
    if not paths:
        return _of(name, dicom.frames(path, scratch), path)
    first = load(paths[0])
    warnings = [(paths[0], words) for words in first.warnings]
    for other in paths[1:]:
        grid = _grid_of(other)
        _same_grid(first, grid, name)
        warnings += [(other, words) for words in grid.warnings]
    return Series(name, first.shape, first.voxel_to_ras, len(paths), None, _Files(paths), _told_once(warnings))


def _data_of_a_header(path: Path) -> bool:
    """Whether a file holds the voxels of a header beside it (.img of .hdr)."""
    header = re.sub(r"\.img(\.gz)?$", r".hdr\1", os.fspath(path), flags=re.IGNORECASE)
    return header != os.fspath(path) and os.path.isfile(header)


def _told_once(warnings: list[tuple[str, str]]) -> tuple[str, ...]:
    """What is said of several files' headers in the same words, once, of the first of them."""
    told: dict[str, str] = {}
    for path, words in warnings:
        told.setdefault(words.replace(os.path.basename(path), "…"), words)
    return tuple(told.values())


def _grid_of(path: str) -> Volume:
    """A volume of the file's grid, without reading its voxels where the format allows."""
    if extension(path) in nifti.EXTENSIONS:
        shape, matrix, warnings = nifti.grid(path)
        if len(shape) == 3:
            values = np.broadcast_to(np.zeros(1, np.uint8), shape)
            return Volume(values, matrix, os.path.basename(path), warnings=warnings)
    return load(path)


def _natural(path: Path) -> list:
    """Sorts frame_2 before frame_10."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", path.name)]
