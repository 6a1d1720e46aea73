"""Frames of a series as they lie in a file, one behind the other, so that each is read alone.

What is packed, or has the numbers of a voxel side by side, is first laid down so in a scratch file, piece by piece:
memory is that of a frame, however many there are.
"""

from __future__ import annotations

import gzip
import math
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Callable

import numpy as np

from ...errors import InputError

#: Bytes that are unpacked or put in another order at a time.
_PIECE = 2**24


@dataclass(frozen=True)
class Layout:
    """Where the numbers of a file lie.

    path: the file that holds them, from byte ``offset`` on; dtype: with its order of bytes; sizes: along each axis, the
    fastest first; packed: "", "gzip" or "zlib", of which ``skip`` bytes come before the numbers; inside: the frames'
    axis is the fastest (the numbers of a voxel lie side by side), not the slowest.
    """

    path: str
    offset: int
    dtype: np.dtype
    sizes: tuple[int, ...]
    packed: str = ""
    inside: bool = False
    skip: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels (I, J, K) of a frame."""
        return self.sizes[1:] if self.inside else self.sizes[:-1]

    @property
    def count(self) -> int:
        """Frames."""
        return self.sizes[0] if self.inside else self.sizes[-1]

    @property
    def bytes(self) -> int:
        """Of all numbers, unpacked."""
        return math.prod(self.sizes) * self.dtype.itemsize


@dataclass(frozen=True)
class Numbers:
    """Frames of ``shape`` voxels, each in Fortran order, in a file from byte ``offset`` on; scaled by slope and inter.

    Picklable: another process reads the same file. scratch: keeps the folder of a file that is not the user's.
    """

    path: str
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    slope: float = 1.0
    inter: float = 0.0
    scratch: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "scratch": None}

    def read(self, index: int, keep_type: bool = False) -> np.ndarray:
        """Frame ``index``, I×J×K of float32, or of the stored type with ``keep_type`` where it is not scaled.

        Raises InputError where the file ends before it does.
        """
        wanted = math.prod(self.shape)
        start = self.offset + index * wanted * self.dtype.itemsize
        values = np.fromfile(self.path, self.dtype, wanted, offset=start)
        if values.size < wanted:
            raise truncated(self.path)
        values = values.reshape(self.shape, order="F")
        with np.errstate(over="ignore"):
            if (self.slope, self.inter) != (1.0, 0.0):
                from nibabel.volumeutils import apply_read_scaling

                values = apply_read_scaling(values, self.slope, self.inter)
            return np.asarray(values, values.dtype.newbyteorder("=") if keep_type else np.float32)


def truncated(path: str) -> InputError:
    """The sentence about a series that ends too early."""
    return InputError(f"{path} is truncated: it ends before its last frame; copy it again.")


@contextmanager
def _scratch_file(where) -> Iterator[tuple[tempfile.TemporaryDirectory, Any]]:
    """(A folder in ``where`` (None: the system's) that goes when nobody needs it any more, an open file in it).

    Raises InputError where there is no room for it.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=".series-", dir=where)
        try:
            with open(os.path.join(folder.name, "series"), "wb") as file:
                yield folder, file
        except BaseException:
            folder.cleanup()
            raise
    except OSError as error:
        place = tempfile.gettempdir() if where is None else where
        raise InputError(
            f"The series cannot be unpacked in {place} ({(error.strerror or type(error).__name__).lower()}); make room "
            "there or choose another folder."
        ) from error


def laid_down(layout: Layout, named: str, scratch) -> Numbers:
    """The frames of a layout, where they lie or in a scratch file; ``named``: the file that messages name."""
    if not layout.packed and os.path.getsize(layout.path) < layout.offset + layout.bytes:
        raise truncated(named)
    if not layout.packed and not layout.inside:
        return Numbers(layout.path, layout.offset, layout.dtype, layout.shape)
    with _scratch_file(scratch) as (folder, file), open(layout.path, "rb") as source:
        source.seek(layout.offset)
        _spread(_pieces(source, layout), file, layout, named)
    return Numbers(file.name, 0, layout.dtype, layout.shape, scratch=folder)


def of_proxy(proxy: Any, named: str, scratch) -> tuple[Numbers, int]:
    """(the frames of nibabel's ArrayProxy, how many); Raises InputError where it is not 4D or no plain numbers."""
    shape = [int(n) for n in proxy.shape]
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    shape += [1] * (len(shape) == 3)
    if len(shape) != 4 or 0 in shape:
        raise InputError(f"{named} is not 4D: its array has shape {'×'.join(map(str, shape))}.")
    if proxy.dtype.kind not in "biuf":
        kind = "colors" if proxy.dtype.names else f"{proxy.dtype} values"
        raise InputError(f"{named} holds {kind}; a series of plain numbers is needed.")
    image, start = os.fspath(proxy.file_like), int(proxy.offset)
    if image.lower().endswith((".gz", ".mgz")):
        lies = Layout(image, 0, proxy.dtype, tuple(shape), "gzip", skip=start)
    else:
        lies = Layout(image, start, proxy.dtype, tuple(shape))
    found = laid_down(lies, named, scratch)
    return replace(found, slope=float(proxy.slope), inter=float(proxy.inter)), shape[3]


def written_down(frames: Iterator[np.ndarray], shape, scratch) -> Numbers:
    """Arrays I×J×K put into a scratch file as float32."""
    with _scratch_file(scratch) as (folder, file):
        for frame in frames:
            file.write(np.asarray(frame, np.float32).tobytes(order="F"))
    return Numbers(file.name, 0, np.dtype(np.float32), tuple(shape), scratch=folder)


def _pieces(source: BinaryIO, layout: Layout) -> Iterator[bytes]:
    """The bytes of the numbers, unpacked and no more; each piece is of whole voxels with all their numbers."""
    unit = layout.dtype.itemsize * (layout.count if layout.inside else 1)
    size = max(1, _PIECE // unit) * unit
    read: Callable[[int], bytes]
    if layout.packed == "gzip":
        read = gzip.GzipFile(fileobj=source).read
    elif layout.packed == "zlib":
        read = _Inflated(source).read
    else:
        read = source.read
    if layout.skip:
        read(layout.skip)
    left = layout.bytes
    while left and (piece := read(min(size, left))):
        yield piece
        left -= len(piece)
    while layout.packed and not left and read(size):
        pass  # at the end is the checksum


class _Inflated:
    """A stream in zlib's format, unpacked."""

    def __init__(self, source: BinaryIO):
        self.source, self.unpacker = source, zlib.decompressobj(zlib.MAX_WBITS | 32)

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; fewer only at the end."""
        parts, missing = [], size
        while missing and not self.unpacker.eof:
            packed = self.unpacker.unconsumed_tail or self.source.read(2**20)
            if not packed:
                break
            parts.append(self.unpacker.decompress(packed, missing))
            missing -= len(parts[-1])
        return b"".join(parts)


def _spread(pieces: Iterator[bytes], file: BinaryIO, layout: Layout, named: str) -> None:
    """Write pieces so that the frames lie one behind the other. Raises InputError where there are too few."""
    done = 0
    try:
        for piece in pieces:
            _put(piece, done, file, layout)
            done += len(piece)
    except EOFError as error:
        raise truncated(named) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        if done < layout.bytes or "Not a gzipped file" not in str(error):  # that is what follows the end
            raise InputError(f"{named} is damaged: it cannot be unpacked; copy it again.") from error
    if done < layout.bytes:
        raise truncated(named)


def _put(piece: bytes, done: int, file: BinaryIO, layout: Layout) -> None:
    """Write a piece, of whose numbers ``done`` bytes came before."""
    if not layout.inside:
        file.write(piece)
        return
    values = np.frombuffer(piece, layout.dtype, len(piece) // layout.dtype.itemsize)
    columns = values[: len(values) // layout.count * layout.count].reshape(-1, layout.count)
    for index in range(layout.count):
        file.seek(index * (layout.bytes // layout.count) + done // layout.count)
        file.write(columns[:, index].tobytes())
