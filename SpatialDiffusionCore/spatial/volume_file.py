"""Volumes in files: what is read, how one of several is chosen, and writing whole or not at all."""

from __future__ import annotations

import os
import re

import numpy as np

from ..errors import InputError
from ..files import extension, written_together, written_whole
from .volume import Volume
from .volume_io import dicom, itk, mgh, nifti
from .volume_io.stored import Stored

NIFTI = (".nii", ".nii.gz")
ITK_IMAGES = (".nrrd", ".nhdr", ".mha", ".mhd")

#: What ``save`` writes.
WRITTEN = NIFTI + ITK_IMAGES

#: What ``load`` reads, beside folders of DICOM files.
READ = nifti.EXTENSIONS + ITK_IMAGES + mgh.EXTENSIONS + dicom.EXTENSIONS


def load(path, keep_type: bool = False) -> Volume:
    """Read a volume: NIfTI, Analyze, NRRD, MetaImage, FreeSurfer's .mgz, or a folder of DICOM files.

    Voxels become float32 with the file's scaling applied, or keep their type with ``keep_type`` (label maps).
    ``file.nii.gz@3`` takes volume 3 (from 0) of a 4D file, ``folder@3`` of a folder. The volume lies where Slicer and
    ITK put it; its ``warnings`` say what in the header contradicts that. Raises InputError with a sentence that names
    the file.
    """
    whole = os.path.abspath(path)
    path, index = split_index(path)
    if os.path.isdir(path):
        stored, index = dicom.read(path, index), None
    elif not os.path.isfile(path):
        raise InputError(f"{path} does not exist.")
    elif extension(path) in nifti.EXTENSIONS:
        stored = nifti.read(path, keep_type)
    elif extension(path) in ITK_IMAGES:
        stored = itk.read(path)
    elif extension(path) in mgh.EXTENSIONS:
        stored = mgh.read(path)
    elif extension(path) in dicom.EXTENSIONS or dicom.looks_like(path):
        stored, index = dicom.read(path, index), None
    else:
        raise InputError(
            f"{path} is not a known volume file; use one of: {', '.join(READ)}, or a folder of DICOM files."
        )
    data = _pick(stored, index, path)
    if not keep_type and data.dtype.kind in "biuf":
        with np.errstate(over="ignore"):  # beyond float32: infinite, which is dealt with where the volume is used
            data = np.asarray(data, dtype=np.float32)
    name = os.path.basename(os.path.normpath(path))
    return Volume(data, stored.voxel_to_ras, name, path=whole, warnings=stored.warnings)


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
    for ending in sorted(READ, key=len, reverse=True):
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
        raise InputError(f"{path} is not a 3D volume: its array has shape {'×'.join(map(str, data.shape))}.")
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
