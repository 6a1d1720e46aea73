"""Output files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

#: Endings that say how a file is packed; the one before them says what it holds.
_PACKED = (".gz", ".bz2", ".zst", ".xz")


def extension(path: str | os.PathLike) -> str:
    """The ending that decides a file's format, lower case: ``.tfm``, ``.nii.gz``; empty if there is none."""
    suffixes = Path(path).suffixes
    keep = 2 if len(suffixes) > 1 and suffixes[-1].lower() in _PACKED else 1
    return "".join(suffixes[-keep:]).lower()


def check_name(path: str | os.PathLike) -> None:
    """Refuse a path with bytes that are no Unicode, which some file systems allow: SimpleITK ends the process on them.

    Raises:
        InputError: that says which.
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "replace")
        raise InputError(f"The name '{shown}' has characters that are no Unicode; rename it.") from None


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write; it takes the name ``path`` when the block ends well.

    The temporary file has the same extensions (``.nii.gz`` too, in lower case), since many writers choose the format by
    them. If the block raises, whatever it is, the temporary file is removed and a file that was already at
    ``path`` is left as it was. A symbolic link stays a link: the file that it points to is replaced.

    Yields the temporary :class:`pathlib.Path`. Raises InputError where the folder does not exist or cannot be
    written to, ``path`` is a folder, the disk is full, or the block has written nothing.
    """
    target = Path(os.path.realpath(path))
    check_name(target)
    if not Path(path).name or target.is_dir():
        raise InputError(f"Cannot write '{path}': it is a folder; give the name of a file.")
    if not target.parent.is_dir():
        raise InputError(f"Cannot write '{path}': there is no folder '{target.parent}'; create it or choose another.")
    ending = extension(target)  # in lower case, which is all that some writers know
    temporary = target.parent / f".{secrets.token_hex(6)}.part{ending}"
    try:
        mode = _created(temporary, path)
        yield temporary
        if not temporary.exists() or temporary.stat().st_size == 0:
            raise InputError(f"Cannot write '{path}': nothing was written; choose another file format.")
        try:
            os.chmod(temporary, mode)  # safetensors puts a file in its place that only the owner may read
            os.replace(temporary, target)
        except OSError as error:
            raise InputError(
                f"Cannot write '{path}' ({_reason(error)}); close what uses it or choose another name."
            ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise InputError(f"Cannot write '{path}': {_reason(error)}; make room and try again.") from error
        if error.errno is None:
            raise
        raise InputError(f"Cannot write '{path}' ({_reason(error)}); choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _created(temporary: Path, path: str | os.PathLike) -> int:
    """The mode of an empty file, made to see whether one can, with the rights of any new file (mkstemp: private)."""
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        return temporary.stat().st_mode
    except OSError as error:
        raise InputError(
            f"Cannot write '{path}': the folder '{temporary.parent}' refuses new files ({_reason(error)}); "
            "choose another folder."
        ) from error


def _folder_beside(target: Path) -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=target.parent)


@contextmanager
def written_together(path: str | os.PathLike) -> Iterator[Path]:
    """Like :func:`written_whole`, for a header that names a file of data beside it (``.mhd``, ``.nhdr``).

    Yields the :class:`pathlib.Path` to write, of the same name (its extension in lower case) in a temporary folder;
    what the block writes beside it goes along, the header last.
    """
    target = Path(os.path.realpath(path))
    with written_whole(path) as placeholder, _folder_beside(target) as folder:
        ending = extension(target)
        header = Path(folder, target.name[: len(target.name) - len(ending)] + ending)
        yield header
        for part in sorted(Path(folder).iterdir()):
            if part != header:
                os.replace(part, target.parent / part.name)
        os.replace(header, placeholder)


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def percent(share: float) -> str:
    """A share of 0…1 in words: "12 %", "0.4 %", "less than 0.1 %"."""
    number = 100 * share
    return "less than 0.1 %" if number < 0.1 else f"{number:.1f} %" if number < 1 else f"{number:.0f} %"
