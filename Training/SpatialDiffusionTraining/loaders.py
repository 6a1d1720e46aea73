"""How one scan becomes a volume of the model's grid in 0..1: exactly as registration will do it.

"canonical" is the model's cube: oriented by the header, centered on the tissue, voxels of one size. "published" is
the published loading of the modality.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.modality import MODALITIES
from SpatialDiffusionCore.modelfile.card import ModelGrid
from SpatialDiffusionCore.modelfile.model_cube import on_model_cube
from SpatialDiffusionCore.pipeline.work_scale import REFERENCE_SIZE
from SpatialDiffusionCore.spatial import geometry, volume, volume_file
from SpatialDiffusionCore.spatial.sampling import prepare

LOADERS = ("canonical", "published")


@dataclass
class Loaded:
    """A scan on the grid: values D×H×W float32 in 0..1; inside: its mask there, uint8 0 or 1, or None.

    about: what is kept beside the voxels, as JSON takes it: mean (3) and covariance (3×3) of the tissue's normalized
    coordinates (x, y, z); to_ras, normalized → RAS mm of the grid (4×4); and of the file shape, spacing (mm), size (mm,
    twice the RMS radius of the tissue), window (the intensities that become 0 and 1), median (of the tissue, 0..1).
    """

    values: np.ndarray
    inside: np.ndarray | None
    about: dict[str, Any]


def load(path: str | Path, loader: str, modality: str, grid: dict[str, Any], mask: str | Path | None = None) -> Loaded:
    """A scan on the grid {"size": (D, H, W), "spacing": mm, one number or three}.

    mask: a file with voxels other than 0 inside. Scans of the modality "any" are scaled to one size first. A modality
    that the core does not know is loaded like "any". Raises InputError where the scan cannot be used.
    """
    if loader not in LOADERS:
        raise InputError(f"Unknown loader {loader!r}; choose one of: {', '.join(LOADERS)}.")
    if os.path.islink(path) and not os.path.exists(path):
        raise InputError(
            f"{path} is a link to a file that is not here (an annexed file, say); fetch its content first."
        )
    scan = volume_file.load(path)
    volume.validate(scan)
    key = modality if modality in MODALITIES else "any"
    prepared, scale = prepare(scan), 1.0
    if modality == "any" and loader == "canonical":
        # As registration does it with volumes of any kind: as if their tissue were as large as a head.
        scale = REFERENCE_SIZE / prepared.size
    where = ModelGrid.from_dict({**grid, "size": list(grid["size"]), "loading": loader})
    cube = on_model_cube(prepared.scaled(scale), key, where, "cpu")
    to_mm = np.diag([1 / scale] * 3 + [1.0])
    values = cube.values.numpy()[0, 0]
    if values.max() <= values.min():
        raise InputError(f"{scan.name} is empty on the model's grid.")
    seen = cube.prepared
    to_normalized = geometry.inverse(cube.grid.normalized_to_ras)
    linear = to_normalized[:3, :3]
    inside = None
    if mask is not None:
        on_grid = volume.resample(volume_file.load(mask), cube.grid.moved(to_mm), interpolation="nearest")
        inside = (on_grid.data != 0).astype(np.uint8)
    tissue = values[values > 0.05]
    about = {
        "mean": geometry.transform_points(to_normalized, seen.tissue_center[None])[0].tolist(),
        "covariance": (linear @ seen.tissue_covariance @ linear.T).tolist(),
        "to_ras": (to_mm @ cube.grid.normalized_to_ras).tolist(),
        "shape": [int(n) for n in scan.shape],
        "spacing": [round(float(n), 4) for n in scan.spacing],
        "size": round(float(prepared.size), 3),
        "window": [float(value) for value in seen.window],
        "median": round(float(np.median(tissue)), 3) if tissue.size else 0.0,
    }
    return Loaded(values, inside, about)
