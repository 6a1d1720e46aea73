"""Is a file in HDF5 whole enough for its library? On some damaged ones that prints pages or never ends."""

from __future__ import annotations

import re
import struct

from .text import damaged

SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: Where a superblock of each version says how long the file is.
_LENGTH_AT = {0: 40, 1: 44, 2: 28, 3: 28}


def check(content: bytes, path) -> None:
    """Refuse a file that is cut off, or whose global heap, where texts are kept, leads nowhere.

    The library walks a heap object by object and never ends where one has no length. Layout: HDF5 File Format
    Specification 3.0, II.A (superblock) and III.E (global heap).

    Raises:
        InputError: if the file is damaged.
    """
    where = _LENGTH_AT.get(content[8]) if len(content) > 48 else None
    if where is None or int.from_bytes(content[where : where + 8], "little") > len(content):
        raise damaged(path)
    for heap in re.finditer(rb"GCOL\x01", content):
        position = heap.start() + 16
        end = min(heap.start() + int.from_bytes(content[heap.start() + 8 : position], "little"), len(content))
        while position + 16 <= end:
            index, length = struct.unpack_from("<H6xQ", content, position)
            # An object has a header of 16 bytes and is padded to 8; the free space, object 0, counts its header.
            step = 16 + (length + 7) // 8 * 8 if index else length
            if not 16 <= step <= end - position:
                raise damaged(path)
            position += step
