"""VTK's legacy files (.vtk) of polygons or unstructured grids, binary or as text."""

from __future__ import annotations

import re

import numpy as np

from ...errors import InputError
from .motion import Motion, damaged, frame_in

_TYPES = {b"float": ">f4", b"double": ">f8"}

#: Attributes of points and cells that a transform moves.
_ATTRIBUTE = re.compile(rb"\n(NORMALS|VECTORS)[ \t]+(\S+)[ \t]+(float|double)[ \t]*\r?\n")


def moved(content: bytes, motion: Motion, path) -> bytes:
    """The file with its points, normals and vectors moved."""
    head = re.match(rb"# vtk DataFile[^\n]*\n([^\n]*)\n\s*(ASCII|BINARY)\s*\n", content)
    if head is None:
        raise damaged(path, "VTK file")
    points = re.search(rb"\nPOINTS[ \t]+(\d+)[ \t]+(\w+)[ \t]*\r?\n", content)
    if points is None:
        raise InputError(f"'{path}' has no points; a VTK file of polygons or an unstructured grid is needed.")
    if points[2] not in _TYPES:
        raise InputError(f"'{path}' holds points as {points[2].decode()}; save them as float or double.")
    frame, text = frame_in(head[1].decode("latin-1")), head[2] == b"ASCII"
    parts, position = [], 0
    for start, count, kind, change in _arrays(content, points, motion):
        data, end = _numbers(content, start, count, kind, text, path)
        parts += [content[position:start], _stored(change(data, frame), kind, text)]
        position = end
    return b"".join(parts) + content[position:]


def _arrays(content: bytes, points: re.Match, motion: Motion):
    """(where its numbers start, how many triples, type, how it moves) of each array, in the order of the file."""
    yield points.end(), int(points[1]), points[2], motion.points
    sections = list(re.finditer(rb"\n(?:POINT_DATA|CELL_DATA)[ \t]+(\d+)", content))
    for attribute in _ATTRIBUTE.finditer(content, points.end()):
        before = [section for section in sections if section.end() <= attribute.start() + 1]
        if before:
            change = motion.normals if attribute[1] == b"NORMALS" else motion.vectors
            yield attribute.end(), int(before[-1][1]), attribute[3], change


def _numbers(content: bytes, start: int, count: int, kind: bytes, text: bool, path):
    """(count × 3 numbers, where they end)."""
    if not text:
        end = start + 3 * count * np.dtype(_TYPES[kind]).itemsize
        if end > len(content):
            raise damaged(path, "VTK file")
        return np.frombuffer(content, _TYPES[kind], 3 * count, start).astype(float).reshape(-1, 3), end
    words = re.compile(rb"\s*(?:[-+\d.eEnaifNAIF]+\s+){%d}" % (3 * count)).match(content + b"\n", start)
    if words is None:
        raise damaged(path, "VTK file")
    try:
        return np.array(words[0].split(), float).reshape(-1, 3), min(words.end(), len(content))
    except ValueError:
        raise damaged(path, "VTK file") from None


def _stored(values: np.ndarray, kind: bytes, text: bool) -> bytes:
    values = values.astype(_TYPES[kind])
    if not text:
        return values.tobytes()
    return "".join(" ".join(str(value) for value in row) + "\n" for row in values).encode()
