"""VTK's files in XML (.vtp, .vtu): the arrays that move are put into the file as text, all others stay as they are."""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .motion import Motion, damaged

_TYPES = {"Float32": "f4", "Float64": "f8", "String": "i1", "Int8": "i1"}
_HEADERS = {"UInt32": "u4", "UInt64": "u8"}
_ARRAY = re.compile(r"<(DataArray|Array)\b([^>]*?)(/>|>(.*?)</\1>)", re.DOTALL)


@dataclass(frozen=True)
class _File:
    """What the file says of its arrays. order: of bytes; header: type of lengths; appended: the bytes behind it all."""

    order: str
    header: str
    compressed: bool
    encoding: str
    appended: bytes
    path: object

    def values(self, attributes: dict, text: str) -> np.ndarray:
        """The numbers of an array; elements that follow them inside it say more about them."""
        kind = np.dtype(self.order + _TYPES[attributes["type"]])
        form = attributes.get("format", "ascii")
        if form == "ascii":
            return np.array(text.split("<")[0].split(), float if kind.kind == "f" else int)
        if form == "binary":
            return np.frombuffer(self._unpacked(re.sub(r"\s", "", text.split("<")[0]).encode(), "base64"), kind)
        start = int(attributes["offset"])
        return np.frombuffer(self._unpacked(self.appended[start:], self.encoding), kind)

    def _unpacked(self, data: bytes, encoding: str) -> bytes:
        """The bytes of an array that begin ``data``: a length and the bytes, or the lengths of compressed blocks
        first."""
        size = np.dtype(_HEADERS[self.header]).itemsize

        def taken(start: int, count: int) -> bytes:
            if encoding == "raw":
                return data[start : start + count]
            return base64.b64decode(data[start : start + -(-count // 3) * 4])[:count]

        def lengths(start: int, count: int) -> np.ndarray:
            return np.frombuffer(taken(start, count * size), self.order + _HEADERS[self.header]).astype(int)

        if not self.compressed:
            return taken(0, size + int(lengths(0, 1)[0]))[size:]
        blocks = int(lengths(0, 1)[0])
        sizes = lengths(0, 3 + blocks)[3:]
        start = (3 + blocks) * size
        packed = taken(start if encoding == "raw" else -(-start // 3) * 4, int(sizes.sum()))
        ends = np.cumsum(sizes)
        return b"".join(zlib.decompress(packed[end - one : end]) for one, end in zip(sizes, ends))


def moved(content: bytes, motion: Motion, path) -> bytes:
    """The file with its points, and the normals of points and cells, moved."""
    marker = re.search(rb'<AppendedData\s+encoding="(\w+)"\s*>\s*_', content)
    text = content[: marker.start() if marker else len(content)].decode("utf-8", "surrogateescape")
    try:
        return _moved(text, content[len(text.encode("utf-8", "surrogateescape")) :], marker, motion, path)
    except (ValueError, KeyError, IndexError, TypeError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise damaged(path, "VTK file") from error


def _moved(text: str, rest: bytes, marker, motion: Motion, path) -> bytes:
    head = re.search(r"<VTKFile\b([^>]*)>", text)
    if head is None:
        raise damaged(path, "VTK file")
    about = _attributes(head[1])
    compressor = about.get("compressor", "")
    if compressor not in ("", "vtkZLibDataCompressor"):
        raise InputError(f"'{path}' is compressed by {compressor}; save it without compression.")
    order = ">" if about.get("byte_order") == "BigEndian" else "<"
    appended = rest[marker.end() - marker.start() :] if marker else b""
    encoding = marker[1].decode() if marker else "base64"
    file = _File(order, about.get("header_type", "UInt32"), bool(compressor), encoding, appended, path)
    frame = _frame(text, file)
    for tag, change in (("Points", motion.points), ("PointData", motion.normals), ("CellData", motion.normals)):
        text = re.sub(rf"(<{tag}\b([^>]*)>)(.*?)(</{tag}>)", _section(tag, change, file, frame), text, flags=re.DOTALL)
    return text.encode("utf-8", "surrogateescape") + rest


def _section(tag: str, change, file: _File, frame: str):
    """What takes the place of the points, or of the data of points or cells, whose normals alone move."""

    def section(match: re.Match) -> str:
        normals = _attributes(match[2]).get("Normals")

        def array(found: re.Match) -> str:
            attributes = _attributes(found[2])
            if (
                tag != "Points"
                and attributes.get("Name") != normals
                or attributes.get("type") not in ("Float32", "Float64")
            ):
                return found[0]
            values = change(file.values(attributes, found[4] or "").reshape(-1, 3), frame)
            values = values.astype(_TYPES[attributes["type"]])
            kept = {k: v for k, v in attributes.items() if k not in ("format", "offset", "RangeMin", "RangeMax")}
            words = " ".join(f'{k}="{v}"' for k, v in {**kept, "format": "ascii"}.items())
            rows = "\n".join(" ".join(str(value) for value in row) for row in values)
            return f"<{found[1]} {words}>\n{rows}\n</{found[1]}>"

        return match[1] + _ARRAY.sub(array, match[3]) + match[4]

    return section


def _attributes(text: str) -> dict:
    return dict(re.findall(r'(\w+)="([^"]*)"', text))


def _frame(text: str, file: _File) -> str:
    """RAS or LPS, by the field SPACE that Slicer writes; LPS without it."""
    for found in _ARRAY.finditer(text):
        attributes = _attributes(found[2])
        if attributes.get("Name") == "SPACE" and attributes.get("type") in _TYPES:
            word = bytes(file.values(attributes, found[4] or "").astype(np.uint8)).decode("latin-1")
            return "RAS" if "RAS" in word else "LPS"
    return "LPS"
