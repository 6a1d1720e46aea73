"""Volumes in files: what is read, how one of several is chosen, and writing whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import check_name, extension, written_together, written_whole
from . import point_file
from .volume import Volume
from .volume_io import dicom, itk, mgh, nifti
from .volume_io.stored import Frames, Stored, not_3d

NIFTI = (".nii", ".nii.gz")
ITK_IMAGES = itk.EXTENSIONS

#: What ``save`` writes.
WRITTEN = NIFTI + ITK_IMAGES

#: What ``load`` reads, beside folders of DICOM files.
READ = nifti.EXTENSIONS + ITK_IMAGES + mgh.EXTENSIONS + dicom.EXTENSIONS

#: What else is moved and written under the name of what it was.
_ALSO_NAMED = (*point_file.EXTENSIONS, ".seg.nrrd")


def load(path, keep_type: bool = False) -> Volume:
    """Read a volume: NIfTI, Analyze, NRRD, MetaImage, FreeSurfer's .mgz, or a folder of DICOM files.

    Voxels become float32 with the file's scaling applied, or keep their type with ``keep_type`` (label maps).
    ``file.nii.gz@3`` takes volume 3 (from 0) of a 4D file, ``folder@3`` of a folder. The volume lies where Slicer and
    ITK put it; its ``warnings`` say what in the header contradicts that. Raises InputError with a sentence that names
    the file.
    """
    check_name(path)
    file, index = split_index(path)
    if os.path.isdir(file) or _is_dicom(file):
        stored, index = dicom.read(file, index), None
    else:
        stored = _read(file, keep_type)
    return _volume(_pick(stored, index, file), stored, path, keep_type)


def header_warnings(path) -> tuple[str, ...]:
    """What ``load`` says of the header of a NIfTI or NRRD file, without reading the voxels; nothing of other files.

    For programs that read files by other means. Raises InputError where the header is no good.
    """
    check_name(path)
    file, ending = os.fspath(path), extension(path)
    if ending in nifti.EXTENSIONS:
        return nifti.header_warnings(file)
    return itk.header_warnings(file) if ending in ITK_IMAGES else ()


class VolumeFrames(Sequence[Volume]):
    """The volumes of a 4D file, on one grid; each is read when it is asked for. interval: seconds from one to the next,
    where the file says it."""

    def __init__(self, found: Frames, path: str, keep_type: bool):
        self.interval = found.interval
        self._found, self._path, self._keep_type = found, path, keep_type

    def __len__(self) -> int:
        return self._found.count

    def __getitem__(self, index: Any) -> Any:
        data = self._found.source.read(range(len(self))[index], self._keep_type)
        return _volume(data, self._found, self._path, self._keep_type)


def load_frames(path, keep_type: bool = False, scratch=None) -> Sequence[Volume]:
    """All volumes of a file: one, or those of a 4D file, on one grid; one where ``FILE@N`` chooses it. As ``load``.

    Those of a 4D file are read one at a time; a packed file is first unpacked into a folder within ``scratch`` (by
    default the system's). What each format's ``frames`` cannot do so, text for instance, is read whole.
    """
    check_name(path)
    file, index = split_index(path)
    if index is not None or os.path.isdir(file) or _is_dicom(file):
        return [load(path, keep_type)]
    _check_file(file)
    ending = extension(file)
    reader = next((one for one in (nifti, mgh, itk) if ending in one.EXTENSIONS), None)
    if reader is not None and reader.holds_frames(file):
        return VolumeFrames(reader.frames(file, scratch), path, keep_type)
    stored = _read(file, keep_type)
    count = stored.data.shape[3] if stored.data.ndim == 4 and stored.frames == "volumes" else 1
    chosen = range(count) if count > 1 else [None]
    return [_volume(_pick(stored, one, file), stored, path, keep_type) for one in chosen]


def _check_file(file: str) -> None:
    if not os.path.isfile(file):
        raise InputError(f"{file} does not exist.")
    check_not_empty(file)


def _read(file: str, keep_type: bool) -> Stored:
    """The content of a file that is not DICOM."""
    _check_file(file)
    ending = extension(file)
    if ending in nifti.EXTENSIONS:
        return nifti.read(file, keep_type)
    if ending in ITK_IMAGES:
        return itk.read(file)
    if ending in mgh.EXTENSIONS:
        return mgh.read(file)
    raise InputError(f"{file} is not a known volume file; use one of: {', '.join(READ)}, or a folder of DICOM files.")


def check_not_empty(file: str) -> None:
    """Raise InputError for a file of no bytes, as transfers that were broken off leave them."""
    if os.path.getsize(file) == 0:
        raise InputError(f"{file} is empty (0 bytes); copy or export it again.")


def _is_dicom(file: str) -> bool:
    known = nifti.EXTENSIONS + ITK_IMAGES + mgh.EXTENSIONS
    return (
        os.path.isfile(file)
        and extension(file) not in known
        and (extension(file) in dicom.EXTENSIONS or dicom.looks_like(file))
    )


def _volume(data: np.ndarray, stored: Stored | Frames, path, keep_type: bool) -> Volume:
    """One of the volumes in a file as callers get it."""
    if not keep_type and data.dtype.kind in "biuf":
        with np.errstate(over="ignore"):  # beyond float32: infinite, which is dealt with where the volume is used
            data = np.asarray(data, dtype=np.float32)
    if _is_mapped(data):
        data = np.array(data)  # the process ends where somebody else shortens a file that is mapped
    name = os.path.basename(os.path.normpath(split_index(path)[0]))
    return Volume(data, stored.voxel_to_ras, name, path=os.path.abspath(path), warnings=stored.warnings)


def _is_mapped(data: Any) -> bool:
    """Whether an array's numbers are those of a file, as that is now."""
    while data is not None and not isinstance(data, np.memmap):
        data = getattr(data, "base", None)
    return data is not None


def split_index(path) -> tuple[str, int | None]:
    """(file or folder, N) of ``FILE@N``, (file, None) where the name itself ends in ``@`` and a number, or has none."""
    path = os.fspath(path)
    match = re.fullmatch(r"(.+)@(\d+)", path, re.DOTALL)
    if match and not os.path.exists(path):
        return match[1], int(match[2])
    return path, None


def stem(path) -> str:
    """What files derived from a volume are called: its name without folder and extension, with ``_N`` for ``@N``."""
    path, index = split_index(path)
    name = os.path.basename(os.path.normpath(path))
    for ending in sorted(READ + _ALSO_NAMED, key=len, reverse=True):
        if name.lower().endswith(ending) and len(name) > len(ending):
            name = name[: -len(ending)]
            break
    return name if index is None else f"{name}_{index}"


def _pick(stored: Stored, index: int | None, path: str) -> np.ndarray:
    """The 3D volume of a file's array; further axes of length 1 are dropped."""
    data = stored.data
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 4:
        count = data.shape[3]
        if index is None:
            what = f"holds {count} numbers per voxel" if stored.frames != "volumes" else "is 4D"
            raise InputError(
                f"{path} {what} ({'×'.join(map(str, data.shape))}): choose one of its volumes 0 to {count - 1} by "
                f"writing {path}@INDEX, for example {path}@0."
            )
        if index >= count:
            raise InputError(f"{path} has no volume {index}; it holds volumes 0 to {count - 1}.")
        return data[..., index]
    if data.ndim != 3:
        raise not_3d(path, data.shape)
    if index not in (None, 0):
        raise InputError(f"{path} is not 4D, so @{index} selects nothing; leave it out.")
    return data


def check_output(path, extensions, what: str) -> None:
    """Raise InputError before work starts where ``path`` cannot be written: its folder or its extension."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise InputError(f"The folder {folder} for {what} does not exist; create it or choose another.")
    if not os.access(folder, os.W_OK):
        raise InputError(f"The folder {folder} for {what} cannot be written to; choose another.")
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder; give a file name for {what}.")
    if extensions and extension(path) not in extensions:
        raise InputError(f"{path} has no known extension for {what}; use one of: {', '.join(extensions)}.")


def check_grid(grid, path) -> str | None:
    """What other programs cannot do with a volume on the voxels of ``grid`` in a file ``path``; None where all is well.

    grid: a Volume or Grid. Raises InputError where the format does not hold it at all.
    """
    if extension(path) not in NIFTI:
        return None
    if max(grid.shape) > nifti.LONGEST_AXIS:
        raise InputError(f"{path}: NIfTI holds at most {nifti.LONGEST_AXIS} voxels along an axis; write .nrrd instead.")
    if nifti.is_perpendicular(grid.voxel_to_ras):
        return None
    return f"3D Slicer and ITK will not open {path}, since its axes are not perpendicular; write .nrrd for them."


def save(volume: Volume, path) -> None:
    """Write a volume whole or not at all; the extension chooses the format (``WRITTEN``).

    The array's type is kept where the format has it (booleans become uint8). A sheared header is kept, too; of such
    files Slicer and ITK read NRRD and MetaImage, not NIfTI. Raises InputError for an unknown extension or a folder that
    is missing.
    """
    path = os.fspath(path)
    check_output(path, WRITTEN, "the volume")
    data = volume.storable()
    ending = extension(path)
    written = written_together if ending in (".nhdr", ".mhd") else written_whole
    with written(path) as temporary:
        if ending in NIFTI:
            nifti.write(data, volume.voxel_to_ras, os.fspath(temporary))
        else:
            itk.write(data, volume.voxel_to_ras, os.fspath(temporary), ending)
