"""Which volumes the words on a command line mean, and what each is called in the names of output files."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from .outputs import POINTS, READ, SEGMENTATION

#: A part of a path that says whose volume it is, in the manner of BIDS: sub-01, ses-2, run-3.
_ENTITY = re.compile(r"(sub|ses|sample|task|acq|ce|rec|dir|run|echo|space|res|desc)-[a-zA-Z0-9]+")


def volume_files(words: Sequence[str], leave_out: Sequence[str] = ()) -> list[str]:
    """The volumes that paths, folders (with all below them) and patterns mean, each once, in order.

    A folder without volumes of other formats means the folders in and below it that hold DICOM files.
    leave_out: files that a folder or a pattern does not mean, such as the fixed volume and the masks.
    Raises InputError where a folder or a pattern holds no volume.
    """
    left_out = {os.path.realpath(path) for path in leave_out if path}
    found: list[str] = []
    for word in words:
        if os.path.isdir(word):
            files = [str(path) for path in sorted(Path(word).rglob("*")) if not _hidden(path, word)]
            what = f"The folder {word}"
            series = [] if any(_is_volume(path) for path in files) else _dicom_folders(files)
            if series:
                found += series
                continue
        elif not os.path.exists(word) and glob.has_magic(word):
            files, what = sorted(glob.glob(word, recursive=True)), f"The pattern {word}"
        else:
            found.append(word)
            continue
        files = [path for path in files if _is_volume(path) and os.path.realpath(path) not in left_out]
        if not files:
            raise InputError(f"{what} holds no volume to move ({', '.join(READ)} or DICOM files).")
        found += files
    return list(dict.fromkeys(found))


def _is_volume(path: str) -> bool:
    return path.lower().endswith(READ) and os.path.isfile(path)


def _dicom_folders(files: Sequence[str]) -> list[str]:
    """The folders that hold a DICOM file among ``files``, in order."""
    folders: dict[str, bool] = {}
    for path in files:
        folder = os.path.dirname(path)
        if not folders.get(folder) and os.path.isfile(path):
            with open(path, "rb") as file:
                folders[folder] = file.read(132)[128:] == b"DICM"
    return [folder for folder, holds in folders.items() if holds]


def _hidden(path: Path, folder: str) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def stem(path: str) -> str:
    """A volume's file name without its ending; volume N of a 4D file is called name_N."""
    name = os.path.basename(os.path.normpath(path))
    base, at, index = name.rpartition("@")
    if at and index.isdigit() and not os.path.exists(path):
        return f"{stem(base)}_{index}"
    ending = next(
        (
            ending
            for ending in sorted((*READ, *POINTS, SEGMENTATION), key=len, reverse=True)
            if name.lower().endswith(ending)
        ),
        "",
    )
    return name[: len(name) - len(ending)] if ending else os.path.splitext(name)[0]


def unique_names(paths: Sequence[str]) -> list[str]:
    """What each volume is called: its stem; where stems are the same, with what tells them apart.

    That is the entities (sub-01, ses-2) in the folders' names if they suffice, else the names of the folders, from the
    nearest one on; of files in one folder their endings. Raises InputError where the same volume is given twice.
    """
    counted = Counter(os.path.realpath(path) for path in paths)
    twice = next((path for path in paths if counted[os.path.realpath(path)] > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice; name each moving volume once.")
    plain = [stem(path) for path in paths]
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
