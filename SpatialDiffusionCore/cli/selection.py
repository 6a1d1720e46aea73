"""Which volumes the words on a command line mean, and what each is called in the names of output files."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence

from ..errors import InputError


def volume_files(words: Sequence[str], leave_out: Sequence[str] = ()) -> list[str]:
    """The volumes that paths, folders (with all below them) and patterns mean, each once, in order.

    A folder of DICOM files is one volume. leave_out: files that a folder or a pattern does not mean, such as the fixed
    volume and the masks. Raises InputError where a folder or a pattern holds no volume.
    """
    left_out = {os.path.realpath(path) for path in leave_out if path}
    found: list[str] = []
    for word in words:
        if os.path.isdir(word):
            files, what = _volumes_below(word), f"The folder {word}"
        elif not os.path.exists(word) and glob.has_magic(word):
            files, what = sorted(filter(_is_volume, glob.glob(word, recursive=True))), f"The pattern {word}"
        else:
            found.append(word)
            continue
        files = [path for path in files if os.path.realpath(path) not in left_out]
        if not files:
            raise InputError(
                f"{what} holds no volume to move; give one that holds NIfTI, NRRD, MetaImage or DICOM files."
            )
        found += files
    return list(dict.fromkeys(found))


def _volumes_below(folder: str) -> list[str]:
    """Files of volumes, and folders of DICOM files, sorted; what is hidden is left out."""
    found = []
    for here, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        paths = [os.path.join(here, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if _is_volume(path)]
        if any(map(_is_dicom, paths)):
            found.append(here)
    return sorted(found)


def _is_volume(path: str) -> bool:
    """Whether a path is a volume by itself: a file of a known kind that is no DICOM slice, nor the data of a header."""
    from ..spatial.volume_file import READ
    from ..spatial.volume_io import dicom

    lower = path.lower()
    if not lower.endswith(READ) or lower.endswith(dicom.EXTENSIONS) or not os.path.isfile(path):
        return False
    data_of_a_header = re.sub(r"\.img(\.gz)?$", r".hdr\1", path)
    return data_of_a_header == path or not os.path.isfile(data_of_a_header)


def _is_dicom(path: str) -> bool:
    from ..spatial.volume_io import dicom

    if path.lower().endswith(dicom.EXTENSIONS):
        return True
    if os.path.splitext(path)[1]:
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"
