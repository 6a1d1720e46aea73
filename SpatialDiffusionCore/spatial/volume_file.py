"""Volumes in files: what is read, how a 4D file's volume is chosen, and writing whole or not at all."""

from __future__ import annotations

import os
import re
from typing import Optional

import numpy as np

from ..errors import InputError
from ..files import extension, written_whole
from . import geometry
from .volume import Volume

NIFTI = (".nii", ".nii.gz")
ITK_IMAGES = (".nrrd", ".nhdr", ".mha", ".mhd")


def load(path, keep_type: bool = False) -> Volume:
    """Read a volume (.nii, .nii.gz with nibabel; .nrrd, .nhdr, .mha, .mhd with SimpleITK).

    Voxels become float32 with the file's scaling applied, or keep their type with ``keep_type`` (label maps).
    ``file.nii.gz@3`` takes volume 3 (from 0) of a 4D file. Raises InputError with a sentence that names the file.
    """
    path = os.fspath(path)
    index = None
    match = re.fullmatch(r"(.+)@(\d+)", path)
    if match and not os.path.exists(path):
        path, index = match[1], int(match[2])
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise InputError(f"{path} {what}.")
    kind = extension(path)
    if kind in NIFTI:
        data, matrix = _read_nifti(path, keep_type)
    elif kind in ITK_IMAGES:
        data, matrix = _read_itk(path)
    else:
        raise InputError(f"{path} is not a known volume file; use one of: {', '.join(NIFTI + ITK_IMAGES)}.")
    name = os.path.basename(path)
    data = _pick(data, index, path)
    if not keep_type and data.dtype.kind in "biuf":
        data = np.asarray(data, dtype=np.float32)
    return Volume(data, matrix, name)


def _pick(data: np.ndarray, index: Optional[int], path: str) -> np.ndarray:
    """The 3D volume of a file's array; further axes of length 1 are dropped."""
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 4:
        count = data.shape[3]
        if index is None:
            raise InputError(
                f"{path} is 4D ({'×'.join(map(str, data.shape))}): choose one of its volumes 0 to {count - 1} by "
                f"writing {path}@INDEX, for example {path}@0."
            )
        if index >= count:
            raise InputError(f"{path} has no volume {index}; it holds volumes 0 to {count - 1}.")
        return data[..., index]
    if index not in (None, 0):
        raise InputError(f"{path} is not 4D, so @{index} selects nothing; leave it out.")
    if data.ndim != 3:
        raise InputError(f"{path} is not a 3D volume: its array has shape {'×'.join(map(str, data.shape))}.")
    return data


def _read_nifti(path: str, keep_type: bool):
    import nibabel

    try:
        image = nibabel.load(path)
        if keep_type and image.dataobj.slope == 1 and image.dataobj.inter == 0:
            data = np.asanyarray(image.dataobj.get_unscaled())
        else:
            data = np.asanyarray(image.dataobj)
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises many kinds for damaged files
        raise InputError(f"{path} cannot be read as NIfTI ({_first_line(error)}).") from error
    header_spacing = image.header.get_zooms()[:3]
    if len(header_spacing) == 3 and min(header_spacing) <= 0:
        raise InputError(f"{path} has a spacing of 0 mm in its header; correct the header first.")
    return data, image.affine


def _read_itk(path: str):
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(path)
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}).") from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(
            f"{path} holds {image.GetNumberOfComponentsPerPixel()} numbers per voxel; a scalar volume is needed."
        )
    dimension = image.GetDimension()
    data = sitk.GetArrayFromImage(image).T  # ITK's arrays run k, j, i
    if dimension < 3:
        raise InputError(f"{path} is not a 3D volume: its array has shape {'×'.join(map(str, data.shape))}.")
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    spacing, origin = np.array(image.GetSpacing()[:3]), np.array(image.GetOrigin()[:3])
    return data, geometry.LPS_RAS @ geometry.from_parts(direction * spacing, origin)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200].rstrip(".") if lines else type(error).__name__


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
    """Write a volume whole or not at all; the extension chooses the format (see ``load``).

    The array's type is kept where the format has it (booleans become uint8). Raises InputError for an unknown
    extension, a missing folder, or a sheared header in a format that cannot hold one (all but NIfTI).
    """
    path = os.fspath(path)
    check_output(path, NIFTI + ITK_IMAGES, "the volume")
    data = volume.data.astype(np.uint8) if volume.data.dtype == bool else volume.data
    if extension(path) in NIFTI:
        import nibabel

        image = nibabel.Nifti1Image(data, volume.voxel_to_ras, dtype=data.dtype)
        image.set_sform(volume.voxel_to_ras, code="scanner")
        image.set_qform(volume.voxel_to_ras, code="scanner", strip_shears=True)
        image.header.set_xyzt_units("mm")
        with written_whole(path) as temporary:
            nibabel.save(image, os.fspath(temporary))
        return
    import SimpleITK as sitk

    direction = volume.voxel_to_ras[:3, :3] / volume.spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-4:
        raise InputError(f"{path}: only NIfTI (.nii, .nii.gz) can hold the sheared header of {volume.name}.")
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.T))
    lps = geometry.LPS_RAS @ volume.voxel_to_ras
    image.SetSpacing(volume.spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / volume.spacing).ravel().tolist())
    with written_whole(path) as temporary:
        sitk.WriteImage(image, os.fspath(temporary), useCompression=True)
