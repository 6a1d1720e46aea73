"""Read and write linear transforms in the files of ITK, Slicer, FreeSurfer, FSL, AFNI, nitransforms and DICOM.

In memory a transform is a 4×4 float64 matrix that maps moving → fixed points in RAS millimeters. In files:

=========  =====================  ==========================================================================
format     extensions             holds
=========  =====================  ==========================================================================
``itk``    .tfm .txt .mat .h5     the map that resamples, fixed → moving, in LPS; the center is honored
``ras``    .txt                   the same matrix as in memory, four lines of four numbers
``flirt``  .mat                   moving → fixed in FSL's scaled voxels; means nothing without both images
``lta``    .lta                   moving (src) → fixed (dst), in RAS or, in files of others, in voxels
``afni``   .aff12.1D              fixed → moving in LPS, where oblique volumes are laid down along the axes
``x5``     .x5                    fixed → moving in RAS, in HDF5
``dicom``  .dcm                   Spatial Registration: moving → fixed in LPS; written for two DICOM series
=========  =====================  ==========================================================================

What a .txt or a .mat holds is told by its content when it is read, and by ``format`` when it is written.
Every file written here reads back without saying ``format``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import extension, written_whole
from .geometry import as_affine
from .transform_io import afni, dicom, flirt, hdf5, itk, lta, ras, x5
from .transform_io.text import ONLY_LINEAR, damaged, text_of
from .volume_io import dicom as series

#: What can be written under each extension, the default first.
FORMATS = {
    ".tfm": ("itk",),
    ".h5": ("itk",),
    ".txt": ("ras", "itk"),
    ".mat": ("itk", "flirt"),
    ".lta": ("lta",),
    ".1d": ("afni",),
    ".x5": ("x5",),
    ".dcm": ("dicom",),
}

_NAMES = ("itk", "ras", "flirt", "lta", "afni", "x5", "dicom")

#: The format of a file whose content says it.
_TOLD = {"lta": "lta", "dicom": "dicom", "x5": "x5", "hdf5": "itk", "text": "itk", "matlab": "itk"}

#: The format of bare numbers, by the extension.
_BARE = {".mat": "flirt", ".txt": "ras", ".1d": "afni"}

# A linear transform takes less than 10 kB; larger files hold displacements or B-spline coefficients.
_LARGEST = 4 * 2**20


def read_transform(path, moving=None, fixed=None, format: str | None = None) -> np.ndarray:
    """Read a linear transform.

    ``moving`` and ``fixed`` are volumes, of which ``shape`` and ``voxel_to_ras`` are used: FLIRT needs both, and so
    does an LTA in voxels that lacks its volume information; AFNI needs them where they are oblique; they tell which
    series of a DICOM registration is which. ``format`` settles what a matrix of bare numbers is, where the extension
    (.mat: FLIRT, .txt: RAS, .1D: AFNI) would mislead.

    Returns the 4×4 float64 matrix, moving → fixed points, RAS, mm. Raises InputError where the file is
    missing, unknown, damaged, not linear, not three-dimensional or not invertible.
    """
    known = _known_extension(path)
    if format not in (None, *_NAMES):
        raise InputError(f"Unknown transform format '{format}'; choose one of: {', '.join(_NAMES)}.")
    content = _content(path)
    found = _kind(content, path)
    wanted = format or (_BARE.get(known) if found == "numbers" else _TOLD[found])
    if wanted not in (tuple(_BARE.values()) if found == "numbers" else (_TOLD[found],)):
        raise _misnamed(path, found, wanted, format)
    if wanted == "itk":
        return itk.read(content, found, path)
    readers = {
        "lta": lambda: lta.read(content, path, moving, fixed),
        "flirt": lambda: flirt.read(content, path, moving, fixed),
        "afni": lambda: afni.read(content, path, moving, fixed),
        "dicom": lambda: dicom.read(content, path, moving, fixed),
        "x5": lambda: x5.read(content, path),
        "ras": lambda: ras.read(content, path),
    }
    return readers[wanted]()


def _misnamed(path, found: str, wanted: str | None, format: str | None) -> InputError:
    names = {"numbers": "bare numbers", "lta": "a FreeSurfer LTA", "dicom": "a DICOM object", "x5": "an X5 transform"}
    advice = (
        "name it .txt if they are a 4×4 RAS matrix, .mat if they are FLIRT's, or .aff12.1D if they are AFNI's"
        if wanted is None
        else f"leave out the format '{format}' or choose another file"
    )
    return InputError(f"'{path}' holds {names.get(found, 'an ITK transform')}; {advice}.")


def write_transform(matrix, path, moving=None, fixed=None, format: str | None = None) -> None:
    """Write ``matrix`` (4×4, moving → fixed points, RAS, mm) in the format of the extension.

    ``format`` chooses where an extension serves two ("itk" for .txt, "flirt" for .mat). ``moving`` and
    ``fixed``, as in :func:`read_transform`, are needed by FLIRT and DICOM, by AFNI where they are oblique, and
    recorded in an LTA or X5 where given. The file appears whole or not at all. Raises InputError where the matrix, the
    extension, the format or the folder is no good.
    """
    known = _known_extension(path)
    chosen = format or FORMATS[known][0]
    if chosen not in FORMATS[known]:
        raise InputError(
            f"Cannot write '{path}' in the format '{chosen}': {known} holds {' or '.join(FORMATS[known])}; "
            f"choose among the extensions {_extensions()}."
        )
    matrix = as_affine(matrix, "The transform to write")
    writers = {
        "itk": lambda: itk.written(matrix, known),
        "lta": lambda: lta.written(matrix, moving, fixed),
        "flirt": lambda: flirt.written(matrix, path, moving, fixed),
        "afni": lambda: afni.written(matrix, moving, fixed),
        "dicom": lambda: dicom.written(matrix, path, moving, fixed),
        "x5": lambda: x5.written(matrix, path, fixed),
        "ras": lambda: ras.written(matrix),
    }
    content = writers[chosen]()
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def check_transform_output(path, moving, fixed) -> None:
    """Raise InputError before work starts where a transform between two volumes (or their paths) does not fit a file.

    A DICOM Spatial Registration refers to two DICOM series.
    """
    if extension(path) != ".dcm":
        return
    for role, volume in (("moving", moving), ("fixed", fixed)):
        place = volume if isinstance(volume, str) else getattr(volume, "path", None)
        if not series.files_of(place):
            raise InputError(
                f"A DICOM Spatial Registration ('{path}') refers to DICOM series, and the {role} volume is none; write "
                "another format, or give the folder of its series."
            )


def _extensions() -> str:
    return ", ".join(sorted(FORMATS))


def _known_extension(path) -> str:
    known = extension(path)
    if known not in FORMATS:
        raise InputError(f"'{path}' has no extension of a linear transform; these are known: {_extensions()}.")
    return known


def _content(path) -> bytes:
    try:
        size = Path(path).stat().st_size
        if size <= _LARGEST:
            content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"There is no transform file '{path}'; check its name.") from None
    except OSError as error:
        raise InputError(
            f"Cannot read the transform file '{path}' ({(error.strerror or str(error)).lower()}); "
            "check that it is a file and that you may read it."
        ) from error
    if size > _LARGEST:
        raise InputError(f"'{path}' is {size / 2**20:.0f} MB, too large for a linear transform; {ONLY_LINEAR}.")
    if not content.strip():
        raise InputError(f"The transform file '{path}' is empty; write it again.")
    return content


def _kind(content: bytes, path) -> str:
    """``hdf5``, ``text`` or ``matlab`` (three ways of ITK), ``x5``, ``dicom``, ``lta``, or ``numbers``."""
    if content.startswith(hdf5.SIGNATURE):
        return "x5" if b"DimensionKinds" in content and b"TransformType" not in content else "hdf5"
    if content[128:132] == b"DICM":
        return "dicom"
    if b"\0" in content:
        if content[:4] in (b"\0\0\0\0", b"\x0a\0\0\0"):
            return "matlab"
        raise damaged(path)
    if re.match(r"\s*#\s*Insight Transform File", text_of(content)):
        return "text"
    if re.search(r"^\s*(src|dst) volume info|^\s*1 +4 +4\s*$", text_of(content), re.MULTILINE):
        return "lta"
    if extension(path) == ".lta":
        raise InputError(f"'{path}' is not a FreeSurfer LTA file; a plain matrix belongs in a .txt file.")
    return "numbers"
