"""FreeSurfer's LTA (.lta): moving (src) → fixed (dst), in RAS or, in files of others, in voxels."""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from ..geometry import as_affine, spacing
from .text import matrix_in, numbers, rows, several, text_of


def read(content: bytes, path, moving, fixed) -> np.ndarray:
    """The matrix in an LTA; moving and fixed are needed where it is in voxels and lacks its volume information."""
    lines = [line.split("#")[0].strip() for line in text_of(content).splitlines()]
    lines = [line for line in lines if line]
    header = dict(_pair(line) for line in lines)
    kind, count = header.get("type", "?"), header.get("nxforms", "1")
    starts = [index for index, line in enumerate(lines) if line.split() == ["1", "4", "4"]]
    if count != "1" or len(starts) > 1:
        raise several(path)
    if kind not in ("0", "1") or not starts:
        raise InputError(
            f"'{path}' is an LTA of type {kind}; types 0 (voxel to voxel) and 1 (RAS to RAS) can be read: "
            "convert it with lta_convert."
        )
    matrix = matrix_in(lines[starts[0] + 1 : starts[0] + 5], path)
    if kind == "1":
        return matrix
    source = _geometry(lines, "src", moving, path)
    target = _geometry(lines, "dst", fixed, path)
    return as_affine(target @ matrix @ np.linalg.inv(source), f"The matrix in '{path}'")


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.strip(), value.strip()


def _geometry(lines: list[str], role: str, volume, path) -> np.ndarray:
    """Voxel → RAS (4×4) of the src or dst volume of an LTA, of ``volume`` where the file does not say it."""
    start = next((index for index, line in enumerate(lines) if line == f"{role} volume info"), len(lines))
    info = dict(_pair(line) for line in lines[start + 1 : start + 9])
    if info.get("valid") != "1":
        if volume is None:
            name = {"src": "moving", "dst": "fixed"}[role]
            raise InputError(
                f"'{path}' is an LTA in voxels without its {role} volume information; give the {name} image."
            )
        return as_affine(volume.voxel_to_ras, "The voxel → RAS matrix")
    keys = ("volume", "voxelsize", "xras", "yras", "zras", "cras")
    values = [numbers(info.get(key, "").split(), path) for key in keys]
    if any(len(value) != 3 for value in values):
        raise InputError(f"The {role} volume information in '{path}' is incomplete; write the file again.")
    size, steps, x, y, z, center = np.array(values)
    result = np.eye(4)
    result[:3, :3] = np.column_stack([x, y, z]) * steps
    result[:3, 3] = center - result[:3, :3] @ (size / 2)
    return as_affine(result, f"The {role} volume information in '{path}'")


def written(matrix: np.ndarray, moving, fixed) -> bytes:
    """The content of an LTA of type 1 (RAS), with the volumes' geometry where they are given."""
    return (
        "type      = 1 # LINEAR_RAS_TO_RAS\nnxforms   = 1\nmean      = 0.0 0.0 0.0\nsigma     = 1.0\n1 4 4\n"
        f"{rows(matrix)}src volume info\n{_volume(moving)}dst volume info\n{_volume(fixed)}"
    ).encode()


def _volume(volume) -> str:
    """FreeSurfer's description of a grid; where there is no volume, its own stand-in, marked as invalid."""
    if volume is None:
        size, steps, center = (256, 256, 256), np.ones(3), np.zeros(3)
        axes = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    else:
        voxel_to_ras = as_affine(volume.voxel_to_ras, "The voxel → RAS matrix")
        size, steps = volume.shape[:3], spacing(voxel_to_ras)
        axes = (voxel_to_ras[:3, :3] / steps).T
        center = voxel_to_ras[:3, 3] + voxel_to_ras[:3, :3] @ (np.array(size) / 2)
    fields = zip(("voxelsize", "xras  ", "yras  ", "zras  ", "cras  "), (steps, *axes, center))
    return (
        f"valid = {int(volume is not None)}  # volume info {'' if volume is not None else 'in'}valid\n"
        f"filename = unknown\nvolume = {' '.join(str(int(n)) for n in size)}\n"
        + "".join(f"{key} = {rows(np.array([value]))}" for key, value in fields)
    )
