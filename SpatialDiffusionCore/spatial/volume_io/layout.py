"""Where the numbers of a NRRD or MetaImage file of many volumes lie, by its header: what ITK itself reads whole only.

None where the file stores them in a way (as text, in many files) that is better left to ITK.
"""

from __future__ import annotations

import os
import re

import numpy as np

from ...errors import InputError
from .numbers import Layout

#: Bytes that a header is looked for in; those of 3D Slicer's sequences say something of each volume.
_LONGEST_HEADER = 2**24

#: NRRD's names of types, with all their aliases, and MetaImage's.
_NRRD_TYPES = {
    "i1": "signed char|int8|int8_t", "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t", "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t", "f4": "float", "f8": "double",
}  # fmt: skip
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip

#: Kinds of axes along which NRRD has places or times; along all others it has the numbers of a voxel.
_PLACES = ("domain", "space", "time", "???", "none")


def nrrd_header(path: str) -> tuple[list[str], int]:
    """(lines of a NRRD's header, the byte behind it)."""
    with open(path, "rb") as file:
        content = file.read(2**16)
        if not re.search(rb"\r?\n\r?\n", content):
            content += file.read(_LONGEST_HEADER)
    end = re.search(rb"\r?\n\r?\n", content)
    text = content[: end.start() if end else len(content)]
    return text.decode("utf-8", "replace").splitlines(), end.end() if end else len(content)


def nrrd_fields(lines: list[str]) -> dict[str, str]:
    """{name in lower case: value} of the lines of a header; what users add (``key:=value``) is left out."""
    pairs = (re.split(r": ?", line, maxsplit=1) for line in lines if ":" in line and not line.startswith("#"))
    return {key.strip().lower(): value.strip() for key, value in pairs if not value.startswith("=")}


def of_nrrd(path: str) -> Layout | None:
    """The layout of a 4D NRRD file."""
    lines, end = nrrd_header(path)
    fields = nrrd_fields(lines)
    kind = next((code for code, names in _NRRD_TYPES.items() if fields.get("type") in names.split("|")), None)
    packed = {"raw": "", "gzip": "gzip", "gz": "gzip"}.get(fields.get("encoding", "").lower())
    skipped = {fields.get(name, "0") for name in ("line skip", "lineskip", "byte skip", "byteskip")} != {"0"}
    sizes = _whole_numbers(fields.get("sizes", ""))
    kinds = [word.lower() for word in fields.get("kinds", "").split()] or ["???"] * len(sizes)
    inside = [axis for axis, one in enumerate(kinds) if one not in _PLACES]
    if kind is None or packed is None or skipped or len(sizes) != 4 or len(kinds) != 4 or inside not in ([], [0], [3]):
        return None
    data = fields.get("data file", fields.get("datafile"))
    if data is not None:
        path, end = os.path.join(os.path.dirname(path), data), 0
        if not os.path.isfile(path):
            return None
    order = "<" if fields.get("endian", "little").lower() == "little" else ">"
    return Layout(path, end, np.dtype(order + kind), tuple(sizes), packed, inside == [0])


def metaimage_fields(path: str) -> tuple[dict[str, str], int]:
    """({name: value} of a MetaImage's header, the byte behind it); without ElementDataFile, which ends it, ({}, 0)."""
    with open(path, "rb") as file:
        content = file.read(2**16)
    head = re.search(rb"^[ \t]*ElementDataFile[ \t]*=([^\r\n]*)(?:\r?\n|\Z)", content, re.MULTILINE)
    if head is None:
        return {}, 0
    lines = content[: head.end()].decode("utf-8", "replace").splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}, head.end()


def check_metaimage(path: str) -> None:
    """Raise InputError for a header at which ITK's MetaIO ends the process, or makes up voxels."""
    fields, end = metaimage_fields(path)
    dimensions, sizes = fields.get("NDims", "3"), fields.get("DimSize", "1")
    data, skipped = fields.get("ElementDataFile", ""), fields.get("HeaderSize", "0")
    wrong = [
        ("NDims", dimensions, not re.fullmatch(r"0*([1-9]|10)", dimensions)),
        ("DimSize", sizes, not re.fullmatch(r"[ \t]*0*[1-9]\d*([ \t]+0*[1-9]\d*)*", sizes)),
        ("ElementDataFile", data, "%" in data and not re.fullmatch(r"[^%]*%\d*d[^%]*", data)),
        ("HeaderSize", skipped, not re.fullmatch(r"-1|\d+", skipped) or int(skipped) > _largest(path, data)),
    ]
    for name, value, bad in wrong:
        if bad:
            raise InputError(f"{path} is damaged: its header says {name} = {value[:40]}; copy or export it again.")
    if data.upper().startswith("LIST"):
        _check_list(path, end, _whole_numbers(sizes), data)


def _largest(path: str, data: str) -> int:
    """Bytes of the file of data, or of the header's own where that is not one file."""
    beside = os.path.join(os.path.dirname(path), data)
    return os.path.getsize(beside if os.path.isfile(beside) else path)


def _check_list(path: str, end: int, sizes: list[int], data: str) -> None:
    """Raise InputError where a header lists fewer files than it has slices, or one that is not there."""
    with open(path, "rb") as file:
        file.seek(end)
        names = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    found = re.search(r"(\d)D", data)
    together = int(found[1]) if found else len(sizes) - 1
    needed = int(np.prod(sizes[together:], dtype=float))
    if len(names) < needed:
        raise InputError(f"{path} is truncated: it lists {len(names)} of {needed} files; copy or export it again.")
    missing = [name for name in names[:needed] if not os.path.isfile(os.path.join(os.path.dirname(path), name))]
    if missing:
        raise InputError(f"{path} lists {missing[0][:80]}, which is not there; copy all of its files.")


def of_metaimage(path: str) -> Layout | None:
    """The layout of a MetaImage file of four dimensions, or of three with several numbers a voxel."""
    fields, end = metaimage_fields(path)
    data = fields.get("ElementDataFile", "")
    sizes, channels = _whole_numbers(fields.get("DimSize", "")), fields.get("ElementNumberOfChannels", "1")
    kind = _META_TYPES.get(fields.get("ElementType", ""))
    told = {"HeaderSize", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"} & set(fields)
    if kind is None or told or not channels.isdigit() or fields.get("BinaryData", "False").lower() != "true":
        return None
    if channels != "1":
        sizes = [int(channels), *sizes]
    if len(sizes) != 4:
        return None
    if data.upper() not in ("LOCAL", "LOCAL_DATA"):
        path, end = os.path.join(os.path.dirname(path), data), 0
        if not os.path.isfile(path):
            return None
    most = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    packed = "zlib" if fields.get("CompressedData", "False").lower() == "true" else ""
    return Layout(path, end, np.dtype((">" if most else "<") + kind), tuple(sizes), packed, channels != "1")


def _whole_numbers(text: str) -> list[int]:
    words = text.split()
    return [int(word) for word in words] if all(word.isdigit() for word in words) else []
