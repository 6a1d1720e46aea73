"""Surfaces in STL, binary or as text."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .motion import Motion, damaged, frame_in

_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_NUMBERS = rb"\s+([-+\d.eE]+)\s+([-+\d.eE]+)\s+([-+\d.eE]+)"


def moved(content: bytes, motion: Motion, path) -> bytes:
    """The file with its triangles moved."""
    count = int.from_bytes(content[80:84], "little")
    if len(content) == 84 + count * _TRIANGLE.itemsize:
        frame = frame_in(content[:80].decode("latin-1"))
        triangles = np.frombuffer(content, _TRIANGLE, count, 84).copy()
        triangles["corners"] = motion.points(triangles["corners"].reshape(-1, 3), frame).reshape(-1, 3, 3)
        triangles["normal"] = motion.normals(triangles["normal"], frame)
        return content[:84] + triangles.tobytes()
    if not content.lstrip().startswith(b"solid") or b"vertex" not in content:
        raise damaged(path, "STL file")
    frame = frame_in(content.splitlines()[0].decode("latin-1"))

    def changed(change: Callable) -> Callable[[re.Match], bytes]:
        def one(match: re.Match) -> bytes:
            values = change(np.array([[float(value) for value in match.groups()[1:]]]), frame)[0]
            return match[1] + b" " + " ".join(f"{value:.9g}" for value in values).encode()

        return one

    content = re.sub(rb"(vertex)" + _NUMBERS, changed(motion.points), content)
    return re.sub(rb"(facet normal)" + _NUMBERS, changed(motion.normals), content)
