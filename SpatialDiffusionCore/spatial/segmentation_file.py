"""3D Slicer's segmentations (.seg.nrrd): label maps whose segments keep their names, colors and terms when they
move."""

from __future__ import annotations

import gzip
import os
import re
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..files import written_whole
from . import geometry
from .volume import Volume, resample
from .volume_io import itk, layout

EXTENSION = ".seg.nrrd"

#: What is said of the grid that the segments were drawn on, and no more true of another one.
_OF_THE_GRID = re.compile(
    r"(Segment\d+_Extent|Segmentation_ReferenceImageExtentOffset|Segmentation_ConversionParameters)$"
)

#: NRRD's names of types.
_TYPES = {
    "int8": "signed char", "uint8": "unsigned char", "int16": "short", "uint16": "unsigned short", "int32": "int",
    "uint32": "unsigned int", "int64": "long long", "uint64": "unsigned long long", "float32": "float",
    "float64": "double",
}  # fmt: skip


@dataclass(frozen=True)
class Segmentation:
    """layers: Volumes of labels on one grid. entries: what the file says beside them, (key, value) as it is written."""

    layers: tuple[Volume, ...]
    entries: tuple[tuple[str, str], ...]

    def moved(self, reference, matrix) -> Segmentation:
        """The segments moved by ``matrix`` (4×4, RAS mm) on the voxels of ``reference``, by the nearest voxel."""
        layers = tuple(resample(layer, reference, matrix, "nearest", background=0) for layer in self.layers)
        entries = [(key, value) for key, value in self.entries if not _OF_THE_GRID.match(key)]
        extent = " ".join(f"0 {n - 1}" for n in layers[0].shape)
        numbers = sorted({int(found[1]) for key, _ in entries if (found := re.match(r"Segment(\d+)_", key))})
        entries += [(f"Segment{number}_Extent", extent) for number in numbers]
        return Segmentation(layers, (*entries, ("Segmentation_ReferenceImageExtentOffset", "0 0 0")))


def is_segmentation(path) -> bool:
    """Whether a file is one by its name."""
    return os.fspath(path).lower().endswith(EXTENSION)


def load_segmentation(path) -> Segmentation:
    """Read a .seg.nrrd file of one or several layers. Raises InputError where it cannot be read."""
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist.")
    stored = itk.read(os.fspath(path))
    data = stored.data if stored.data.ndim == 4 else stored.data[..., None]
    name = os.path.basename(path)
    layers = [Volume(data[..., n], stored.voxel_to_ras, name, warnings=stored.warnings) for n in range(data.shape[3])]
    lines, _ = layout.nrrd_header(os.fspath(path))
    pairs = [line.split(":=", 1) for line in lines if ":=" in line and not line.startswith("#")]
    return Segmentation(tuple(layers), tuple((key, value) for key, value in pairs))


def save_segmentation(segmentation: Segmentation, path) -> None:
    """Write a .seg.nrrd file whole or not at all. Raises InputError for another extension or a folder that is
    missing."""
    if not is_segmentation(path):
        raise InputError(f"{path} must end in {EXTENSION} to keep the segments' names and colors.")
    layers = segmentation.layers
    data = np.stack([layer.storable() for layer in layers]) if len(layers) > 1 else layers[0].storable()
    lps = geometry.LPS_RAS @ layers[0].voxel_to_ras
    axes = [f"({','.join(repr(float(value)) for value in column)})" for column in lps[:3, :3].T]
    listed = ["list"] if len(layers) > 1 else []
    lines = [
        "NRRD0004",
        f"type: {_TYPES[data.dtype.name]}",
        f"dimension: {data.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, data.shape))}",
        f"space directions: {' '.join([*(['none'] if listed else []), *axes])}",
        f"kinds: {' '.join([*listed, 'domain', 'domain', 'domain'])}",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({','.join(repr(float(value)) for value in lps[:3, 3])})",
        *(f"{key}:={value}" for key, value in segmentation.entries),
    ]
    content = data.astype(data.dtype.newbyteorder("<")).tobytes(order="F")
    with written_whole(path) as temporary:
        temporary.write_bytes(("\n".join(lines) + "\n\n").encode() + gzip.compress(content, 6, mtime=0))
