"""Which run a folder or a pair's outputs come from, so that what is done is not done again: by content and settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..files import written_whole

#: The file that says which run a folder holds.
MARKER = "spatial-diffusion.json"


def digest_of(path) -> str:
    """BLAKE2 of a file's content, or of all files below a folder with their names."""
    total = hashlib.blake2b(digest_size=16)
    files = [os.fspath(path)]
    if os.path.isdir(path):
        files = sorted(
            os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names if name[0] != "."
        )
    elif not os.path.exists(path) and "@" in os.path.basename(files[0]):
        total.update(files[0].rpartition("@")[2].encode())  # volume N of a 4D file
        files = [files[0].rpartition("@")[0]]
    for name in files:
        total.update(os.path.relpath(name, path).encode() if len(files) > 1 else b"")
        try:
            with open(name, "rb") as file:
                while part := file.read(2**20):
                    total.update(part)
        except OSError as error:
            raise InputError(f"{name} cannot be read ({(error.strerror or 'unknown').lower()}).") from error
    return total.hexdigest()


def content_key(inputs: Iterable, settings: Mapping[str, Any]) -> str:
    """One name for the content of input files (None: there is none) and everything that decides the answer."""
    contents = [None if path is None else digest_of(path) for path in inputs]
    text = json.dumps([__version__, contents, {k: repr(v) for k, v in sorted(settings.items())}])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def holds(folder, key: str, page: str | None = None) -> bool:
    """Whether an output folder holds the run named ``key``, complete; changes nothing.

    page: the folder of the review page that was asked for, which must be the run's, too.
    Raises InputError where it holds another run, or can be neither made nor written to.
    """
    path = Path(folder)
    if not path.is_dir():
        parent = path.absolute().parent
        if path.exists() or not parent.is_dir():
            raise InputError(f"{path} cannot be made; give a folder whose parent exists.")
        if not os.access(parent, os.W_OK):
            raise InputError(f"{path} cannot be made, as {parent} cannot be written to; choose another folder.")
        return False
    if not os.access(path, os.W_OK):
        raise InputError(f"The folder {path} cannot be written to; choose another.")
    known = read_marker(path)
    if known is None:
        return False
    if known.get("key") != key:
        raise InputError(
            f"{path} holds another run ({known.get('what', 'unknown')}); give a new folder or remove that one."
        )
    shown = page is None or known.get("page") == page and (Path(page) / "data.js").is_file()
    return bool(known.get("complete")) and shown


def begin(folder, key: str, what: str) -> None:
    """Make the folder for a run, where there is none, and mark it as the run's, not complete."""
    try:
        Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from error
    mark_folder(folder, key, what, complete=False)


def read_marker(folder) -> dict | None:
    """What ``mark_folder`` wrote; None where it wrote nothing."""
    try:
        return json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:
        return {}


def mark_folder(folder, key: str, what: str, complete: bool = True, **more) -> None:
    """Write which run a folder holds, and whether all of it is there."""
    with written_whole(Path(folder) / MARKER) as temporary:
        text = json.dumps({"key": key, "what": what, "complete": complete, **more}, indent=2)
        Path(temporary).write_text(text + "\n", encoding="utf-8")
