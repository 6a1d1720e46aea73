"""Surfaces in PLY, binary or as text."""

from __future__ import annotations

import numpy as np

from .motion import Motion, damaged, frame_in

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


def moved(content: bytes, motion: Motion, path) -> bytes:
    """The file with its vertices and their normals moved."""
    end = content.find(b"end_header")
    start = content.find(b"\n", end) + 1
    if not content.startswith(b"ply") or end < 0 or start == 0:
        raise damaged(path, "PLY file")
    header = content[:end].decode("latin-1").splitlines()
    order, count, properties = _vertices(header, path)
    frame = frame_in("\n".join(header))
    if order is None:
        lines = content[start:].splitlines(keepends=True)
        rows = [line.split() for line in lines[:count]]
        if len(rows) < count or any(len(row) < len(properties) for row in rows):
            raise damaged(path, "PLY file")
        try:
            table = {name: np.array([float(row[k]) for row in rows]) for k, (name, _) in enumerate(properties)}
        except ValueError:
            raise damaged(path, "PLY file") from None
        _move(table, motion, frame, path)
        for k, (name, kind) in enumerate(properties):
            if kind.startswith("f"):
                for row, value in zip(rows, table[name]):
                    row[k] = repr(float(np.dtype(kind).type(value))).encode()
        return content[:start] + b"".join(b" ".join(row) + b"\n" for row in rows) + b"".join(lines[count:])
    kind = np.dtype([(name, order + code) for name, code in properties])
    if len(content) < start + count * kind.itemsize:
        raise damaged(path, "PLY file")
    packed = np.frombuffer(content, kind, count, start).copy()
    _move(packed, motion, frame, path)
    return content[:start] + packed.tobytes() + content[start + count * kind.itemsize :]


def _vertices(header: list[str], path):
    """(order of bytes or None for text, number of vertices, [(property, type)]); they must be the first element."""
    orders = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}
    words = [line.split() for line in header]
    elements = [line for line in words if line[:1] == ["element"]]
    formats = [line[1] for line in words if line[:1] == ["format"]]
    if not elements or elements[0][1] != "vertex" or not formats or formats[0] not in orders:
        raise damaged(path, "PLY file whose vertices come first")
    first = words.index(elements[0])
    last = words.index(elements[1]) if len(elements) > 1 else len(words)
    found = [line[1:] for line in words[first:last] if line[:1] == ["property"]]
    try:
        properties = [(name, _TYPES[kind]) for kind, name in found]
        return orders[formats[0]], int(elements[0][2]), properties
    except (ValueError, KeyError, IndexError):
        raise damaged(path, "PLY file") from None


def _move(table, motion: Motion, frame: str, path) -> None:
    """Move the vertices and normals in a table of columns."""
    names = list(table) if isinstance(table, dict) else list(table.dtype.names)
    if not {"x", "y", "z"} <= set(names):
        raise damaged(path, "PLY file")
    for columns, change in ((("x", "y", "z"), motion.points), (("nx", "ny", "nz"), motion.normals)):
        if set(columns) <= set(names):
            values = change(np.column_stack([table[name] for name in columns]).astype(float), frame)
            for name, column in zip(columns, values.T):
                table[name] = column
