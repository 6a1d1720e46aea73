"""NRRD and MetaImage, and whatever else is asked of ITK: its readers are those of Slicer."""

from __future__ import annotations

import errno
import locale
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import InputError
from ...files import extension
from .. import geometry
from . import layout, numbers
from .numbers import Layout
from .stored import Frames, Stored, first_line, not_3d, unreadable

#: ITK's reader and writer for each extension. Named, because ITK itself goes by extensions, some in lower case only.
IMAGE_IO = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}

EXTENSIONS = tuple(IMAGE_IO)


@contextmanager
def quiet_itk() -> Iterator:
    """SimpleITK without words on the terminal, and with decimal points.

    Its readers and writers of text take numbers as the process's locale has them: where a host program (Qt) chose one
    with a decimal comma, a NRRD's 0.5 is read as 0. Its libraries (MetaIO, HDF5, VNL) write to standard error by
    themselves, pages sometimes; what is wrong is said in a sentence here.
    """
    sitk = simpleitk()
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    chosen = locale.setlocale(locale.LC_NUMERIC)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if chosen not in ("C", "POSIX"):
        locale.setlocale(locale.LC_NUMERIC, "C")
    try:
        with _silent_libraries():
            yield sitk
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)
        if chosen not in ("C", "POSIX"):
            locale.setlocale(locale.LC_NUMERIC, chosen)


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """The process's standard error goes nowhere meanwhile; only in the main thread, since it is everybody's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    silence_libraries()
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def silence_libraries() -> None:
    """Let what is written to the process's standard error go nowhere from now on."""
    if sys.stderr is not None:
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def simpleitk():
    """The module SimpleITK; InputError where it is not installed."""
    try:
        import SimpleITK
    except ImportError:
        raise InputError(
            "Volumes and transforms in files of ITK need SimpleITK; install it with: pip install SimpleITK."
        ) from None
    return SimpleITK


def header_matrix(path: str, image_io: str = "") -> np.ndarray:
    """The 4×4 voxel → RAS matrix of a file as ITK reads its header; RuntimeError where ITK refuses it."""
    with quiet_itk() as sitk:
        reader = sitk.ImageFileReader()
        reader.SetFileName(path)
        if image_io:
            reader.SetImageIO(image_io)
        reader.ReadImageInformation()
        return _matrix(reader)


def _matrix(image) -> np.ndarray:
    """Voxel → RAS of a SimpleITK image, or of a reader that has seen a header."""
    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    spacing, origin = np.array(image.GetSpacing()[:3]), np.array(image.GetOrigin()[:3])
    return geometry.LPS_RAS @ geometry.from_parts(direction * spacing, origin)


def _reader(sitk: Any, path: str) -> Any:
    """ITK's reader of a file, with the format that its extension names."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.SetImageIO(IMAGE_IO[extension(path)])
    return reader


def read(path: str) -> Stored:
    """Read a NRRD or MetaImage file. The numbers of a voxel (a NRRD of kind *list*) become the last axis."""
    _check(path)
    try:
        with quiet_itk() as sitk:
            image = _reader(sitk, path).Execute()
    except RuntimeError as error:
        raise unreadable(path, error) from error
    if image.GetDimension() < 3:
        raise not_3d(path, image.GetSize())
    data, frames = sitk.GetArrayFromImage(image), "volumes"
    if image.GetNumberOfComponentsPerPixel() > 1:
        data, frames = np.moveaxis(data, -1, 0), "numbers per voxel"
    return Stored(data.T, _matrix(image), header_warnings(path), frames)  # ITK's arrays run k, j, i


def _check(path: str) -> None:
    if IMAGE_IO[extension(path)] == "MetaImageIO":
        layout.check_metaimage(path)


def frames(path: str, scratch) -> Frames:
    """The volumes of a 4D file, or those that are the numbers of a voxel; each is read alone where the format allows.

    Of other files (text, several files of data, other packings) all are read once and laid into ``scratch``.
    """
    dimension, listed, size, matrix, steps = _header(path)
    count = listed if dimension == 3 else size[3] if dimension == 4 and listed == 1 else 1
    known = _layout(path)
    source: Any
    if known is not None and (known.shape, known.count) == (tuple(size[:3]), count):
        source = numbers.laid_down(known, path, scratch)
    else:
        data = read(path).data
        data = data if data.ndim == 4 else data[..., None]
        source = numbers.written_down((data[..., n] for n in range(data.shape[3])), size[:3], scratch)
        count = data.shape[3]
    return Frames(
        tuple(int(n) for n in size[:3]),
        matrix,
        int(count),
        source,
        interval=float(steps[3]) if dimension == 4 else None,
        warnings=header_warnings(path),
    )


def holds_frames(path: str) -> bool:
    """Whether a file is 4D, with more than one volume, and its voxels lie so that each volume can be read alone."""
    dimension, listed, size, *_ = _header(path)
    known = _layout(path) if (dimension, listed) == (4, 1) and size[3] > 1 else None
    return known is not None and (*known.shape, known.count) == tuple(size)


def _header(path: str) -> tuple[int, int, tuple[int, ...], np.ndarray, tuple[float, ...]]:
    """What ITK reads of a header: (axes, numbers per voxel, voxels along each axis, voxel → RAS mm, steps)."""
    _check(path)
    try:
        with quiet_itk() as sitk:
            reader = _reader(sitk, path)
            reader.ReadImageInformation()
            dimension = reader.GetDimension()
            matrix, steps = _matrix(reader) if dimension > 2 else np.eye(4), reader.GetSpacing()
            return dimension, reader.GetNumberOfComponents(), reader.GetSize(), matrix, steps
    except RuntimeError as error:
        raise unreadable(path, error) from error


def _layout(path: str) -> Layout | None:
    return layout.of_nrrd(path) if IMAGE_IO[extension(path)] == "NrrdImageIO" else layout.of_metaimage(path)


def header_warnings(path: str) -> tuple[str, ...]:
    """Sentences about what a NRRD's header leaves open or what ITK ignores in it; none for MetaImage."""
    if IMAGE_IO[extension(path)] != "NrrdImageIO":
        return ()
    fields = layout.nrrd_fields(layout.nrrd_header(path)[0])
    name, warnings = os.path.basename(path), []
    if "space" not in fields or fields["space"].lower().startswith(("scanner", "3d-")):
        warnings.append(
            f"The header of {name} does not say how its axes lie in the patient: they are taken for left, posterior "
            "and superior, as in Slicer and ITK, and left and right are in doubt."
        )
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", "millimeter", "millimeters", ""}
    if units:
        warnings.append(
            f"The header of {name} gives lengths in {', '.join(sorted(units))}, but they are taken for mm, "
            "as in Slicer and ITK."
        )
    return tuple(warnings)


def image_of(data: np.ndarray, voxel_to_ras: np.ndarray) -> Any:
    """The SimpleITK.Image of a copy of an (I, J, K) array; its axes may be sheared."""
    spacing = geometry.spacing(voxel_to_ras)
    lps = geometry.LPS_RAS @ voxel_to_ras
    image = simpleitk().GetImageFromArray(np.ascontiguousarray(data.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def write(data: np.ndarray, voxel_to_ras: np.ndarray, path: str, ending: str) -> None:
    """Write an (I, J, K) array; sheared headers are kept (Slicer and ITK read them). ``ending`` chooses the format."""
    image = image_of(data, voxel_to_ras)
    try:
        with quiet_itk() as sitk:
            sitk.WriteImage(image, path, useCompression=True, imageIO=IMAGE_IO[ending])
    except RuntimeError as error:  # ITK gives no numbers of errors, but says the system's reason
        raise OSError(errno.EIO, f"it could not be written whole: {first_line(error)}") from error
