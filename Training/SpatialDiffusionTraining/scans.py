"""Scans on disk: found in folders and lists, whatever links there are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import extension
from SpatialDiffusionCore.spatial.volume_file import READ
from SpatialDiffusionCore.spatial.volume_io import dicom

#: What is read as a scan: all that the core reads. An Analyze image is named by its .img; slices of DICOM are one scan
#: together, named by their folder.
SUFFIXES = tuple(ending for ending in READ if ending not in (".hdr", ".hdr.gz", *dicom.EXTENSIONS))

#: Endings of files that lie beside scans and are none: which of them is looked into is not worth the time.
OTHERS = (
    ".json",
    ".txt",
    ".tsv",
    ".csv",
    ".bval",
    ".bvec",
    ".md",
    ".xml",
    ".png",
    ".jpg",
    ".pdf",
    ".zip",
    ".gz",
    ".html",
)


def is_scan(name: str | Path) -> bool:
    """Whether a file's name is that of a volume."""
    name = os.path.basename(name)
    return extension(name) in SUFFIXES and not name.startswith(".")


def find_scans(source: str | Path) -> list[Path]:
    """The scans of a folder (recursively), a list file or one scan, as sorted absolute paths.

    Links to folders are followed, each folder once, so a link to itself does no harm; a file that is a link keeps its
    own name (an annexed file's target has none worth reading), and a file that is reached twice counts once. Folders
    that begin with a dot are left out. A list file is text: one path a line, relative to the list's folder; empty lines
    and lines that begin with # do not count. Raises InputError where nothing is found.
    """
    source = Path(source)
    if source.is_dir():
        found = _once(sorted(_walk(os.path.abspath(source))))
        if not found:
            raise InputError(f"{source} holds no volumes ({', '.join('*' + s for s in SUFFIXES)}).")
        return found
    if source.is_file() and is_scan(source):
        return [Path(os.path.abspath(source))]
    if source.is_file():
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{source} is neither a volume nor a text list of volumes.") from None
        names = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not names:
            raise InputError(f"The list {source} names no files.")
        folder = os.path.abspath(source.parent)
        return list(dict.fromkeys(Path(os.path.normpath(os.path.join(folder, name))) for name in names))
    raise InputError(f"{source} does not exist; give a folder of volumes or a text list of them.")


def _walk(folder: str) -> Iterator[Path]:
    """Files of a folder and of the folders in it; links are followed, no folder is entered twice."""
    entered: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(place)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        found = [Path(place) / name for name in files if is_scan(name)]
        yield from found
        if not found and _holds_dicom(place, files):
            yield Path(place)


def _holds_dicom(place: str, files: Iterable[str]) -> bool:
    """Whether a folder's files are slices of a scan: by their ending, or the first without a telling one by its
    content."""
    names = sorted(name for name in files if not name.startswith(".") and name.upper() != "DICOMDIR")
    if any(name.lower().endswith(dicom.EXTENSIONS) for name in names):
        return True
    unknown = [name for name in names if not name.lower().endswith(OTHERS)]
    return bool(unknown) and dicom.looks_like(os.path.join(place, unknown[0]))


def _once(paths: Iterable[Path]) -> list[Path]:
    """Paths without those that lead to a file that another one leads to."""
    seen: dict[str, Path] = {}
    for path in paths:
        seen.setdefault(os.path.realpath(path), path)
    return sorted(seen.values())


def write_list(paths: Iterable[str | Path], file: str | Path) -> None:
    """Write a list that `find_scans` reads."""
    Path(file).write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
