"""3D Slicer's markups: .mrk.json and .fcsv."""

from __future__ import annotations

import json
import re

import numpy as np

from ...errors import InputError
from .. import geometry
from .motion import Motion, damaged

#: Markups that are their control points.
_OF_POINTS = ("Fiducial", "Line", "Angle", "Curve", "ClosedCurve")

#: Markups that are a rectangle or a box, too, which only a rotation with one scale keeps.
_WITH_SIZE = ("Plane", "ROI")

#: Their lengths, in mm.
_LENGTHS = ("size", "planeBounds")

#: How .fcsv names its frame: a word, or a number in old files.
_FRAMES = {"RAS": "RAS", "0": "RAS", "LPS": "LPS", "1": "LPS"}


def moved_json(content: bytes, motion: Motion, path) -> bytes:
    """A .mrk.json file with its control points moved; measurements, which Slicer makes anew, are left out."""
    try:
        data = json.loads(content.decode("utf-8-sig"))
        markups = data["markups"]
        for markup in markups:
            _move_markup(markup, motion, path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise damaged(path, "markups file of 3D Slicer") from error
    return (json.dumps(data, indent=4, ensure_ascii=False) + "\n").encode()


def _move_markup(markup: dict, motion: Motion, path) -> None:
    kind, frame, scale = markup.get("type"), markup.get("coordinateSystem", "LPS"), motion.scale()
    if kind in _WITH_SIZE and scale is None:
        raise InputError(
            f"'{path}' holds a {kind}, which shear, uneven scaling or mirroring would turn into something else; use a "
            "rigid or similarity transform, or put it under the transform in 3D Slicer."
        )
    if kind not in _OF_POINTS + _WITH_SIZE:
        raise InputError(
            f"'{path}' holds a {kind}, which a transform may turn into something else; put it under the "
            "transform in 3D Slicer instead."
        )
    if frame not in ("RAS", "LPS"):
        raise InputError(f"'{path}' is in the coordinate system {frame}; save it in RAS or LPS.")
    for point in markup.get("controlPoints", []):
        _move(point, motion, frame)
    if "center" in markup:
        markup["center"] = motion.points(np.array([markup["center"]], float), frame)[0].tolist()
    markup.pop("measurements", None)
    if kind in _WITH_SIZE:
        _move_axes(markup, motion, frame, float(scale or 1.0))


def _move_axes(markup: dict, motion: Motion, frame: str, scale: float) -> None:
    """The axes and lengths of a plane or box under a rotation with one scale."""
    rotation = motion.rotation(frame)
    if "orientation" in markup:
        markup["orientation"] = (rotation @ np.array(markup["orientation"], float).reshape(3, 3)).ravel().tolist()
    if "normal" in markup:
        markup["normal"] = (rotation @ np.array(markup["normal"], float)).tolist()
    if "baseToNode" in markup:
        base = np.array(markup["baseToNode"], float).reshape(4, 4)
        place = motion.points(base[None, :3, 3], frame)[0]
        markup["baseToNode"] = geometry.from_parts(rotation @ base[:3, :3], place).ravel().tolist()
    if "objectToBase" in markup:
        inside = np.array(markup["objectToBase"], float).reshape(4, 4)
        inside[:3, 3] *= scale
        markup["objectToBase"] = inside.ravel().tolist()
    for name in _LENGTHS:
        if name in markup:
            markup[name] = (np.array(markup[name], float) * scale).tolist()


def _move(point: dict, motion: Motion, frame: str) -> None:
    position = point.get("position")
    if position:  # points that are not placed yet have none
        point["position"] = motion.points(np.array([position], float).reshape(1, 3), frame)[0].tolist()
    if point.get("orientation"):
        turned = motion.rotation(frame) @ np.array(point["orientation"], float).reshape(3, 3)
        point["orientation"] = turned.ravel().tolist()


def moved_fcsv(content: bytes, motion: Motion, path) -> bytes:
    """A .fcsv file with its points moved."""
    text = content.decode("utf-8-sig", errors="replace")
    lines = text.splitlines(keepends=True)
    found = re.search(r"^#\s*CoordinateSystem\s*=\s*(\w+)", text, re.MULTILINE)
    said = found[1] if found else "LPS"
    frame = _FRAMES.get(said)
    if frame is None:
        raise InputError(f"'{path}' is in the coordinate system {said}; save it in RAS or LPS.")
    for index, line in enumerate(lines):
        fields = line.split(",")
        if line.startswith("#") or len(fields) < 4:
            continue
        try:
            point = np.array([[float(value) for value in fields[1:4]]])
        except ValueError:
            raise damaged(path, "markups file of 3D Slicer") from None
        fields[1:4] = [repr(float(value)) for value in motion.points(point, frame)[0]]
        rest = "\n" if len(fields) == 4 and line.endswith("\n") else ""
        lines[index] = ",".join(fields) + rest
    return "".join(lines).encode()
