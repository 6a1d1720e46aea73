"""Which volumes the words on a command line mean, and what each is called in the names of output files."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError

#: A part of a path that says whose volume it is, in the manner of BIDS: sub-01, ses-2, run-3.
_ENTITY = re.compile(r"(sub|ses|sample|task|acq|ce|rec|dir|run|echo|space|res|desc)-[a-zA-Z0-9]+")


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


def unique_names(paths: Sequence[str]) -> list[str]:
    """What each volume is called: its stem; where stems are the same, with what tells them apart.

    That is the entities (sub-01, ses-2) in the folders' names if they suffice, else the names of the folders, from the
    nearest one on; of files in one folder their endings. Raises InputError where the same volume is given twice.
    """
    from ..spatial import volume_file

    counted = Counter(os.path.realpath(path) for path in paths)
    twice = next((path for path in paths if counted[os.path.realpath(path)] > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice; name each moving volume once.")
    plain = [volume_file.stem(path) for path in paths]
    folders = [Path(os.path.abspath(path)).parts[1:-1] for path in paths]
    entities = [[part for part in parts if _ENTITY.fullmatch(part)] for parts in folders]
    longer = [[*(part for part in own if part not in name), name] for own, name in zip(entities, plain)]
    names = _where_shared(plain, ["_".join(parts) for parts in longer])
    depth = 0
    while _shared(names) and depth < max(map(len, folders)):
        depth += 1
        names = _where_shared(names, ["_".join([*parts[-depth:], name]) for parts, name in zip(folders, plain)])
    if _shared(names):
        kinds = [path[path.rindex(name) + len(name) :].strip(".").replace(".", "_") for path, name in zip(paths, plain)]
        names = [f"{name}_{kind}" if name in _shared(plain) else name for name, kind in zip(plain, kinds)]
    return names


def _where_shared(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The other name for each that is shared."""
    shared = _shared(names)
    return [other if name in shared else name for name, other in zip(names, others)]


def _shared(names: Sequence[str]) -> set[str]:
    """Names that occur more than once; capitals do not tell files apart everywhere."""
    counted = Counter(name.lower() for name in names)
    return {name for name in names if counted[name.lower()] > 1}
