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
from SpatialDiffusionCore.modelfile.model_cube import model_cube
from SpatialDiffusionCore.spatial import geometry, volume, volume_file

LOADERS = ("canonical", "published")


@dataclass
class Loaded:
    """A scan on the grid: values D×H×W float32 in 0..1; inside: its mask there, uint8 0 or 1, or None.

    about: what is kept beside the voxels, as JSON takes it: mean (3) and covariance (3×3) of the tissue's normalized
    coordinates (x, y, z); to_ras, normalized → RAS of the grid (4×4); and of the file shape, spacing (mm), size (mm,
    twice the RMS radius of the tissue), window (the intensities that become 0 and 1), median (of the tissue, 0..1).
    """

    values: np.ndarray
    inside: np.ndarray | None
    about: dict[str, Any]


def load(path: str | Path, loader: str, modality: str, grid: dict[str, Any], mask: str | Path | None = None) -> Loaded:
    """A scan on the grid {"size": (D, H, W), "spacing": mm, one number or three}.

    mask: a file with voxels other than 0 inside. A modality that the core does not know is loaded like "any". Raises
    InputError where the scan cannot be used.
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
    cube = model_cube(scan, None, key, {"grid": {**grid, "loading": loader}}, "cpu")
    values = cube.values.numpy()[0, 0]
    if values.max() <= values.min():
        raise InputError(f"{scan.name} is empty on the model's grid.")
    prepared = cube.prepared
    to_normalized = geometry.inverse(cube.grid.normalized_to_ras)
    linear = to_normalized[:3, :3]
    inside = None
    if mask is not None:
        on_grid = volume.resample(volume_file.load(mask), cube.grid, interpolation="nearest")
        inside = (on_grid.data != 0).astype(np.uint8)
    tissue = values[values > 0.05]
    about = {
        "mean": geometry.transform_points(to_normalized, prepared.tissue_center[None])[0].tolist(),
        "covariance": (linear @ prepared.tissue_covariance @ linear.T).tolist(),
        "to_ras": cube.grid.normalized_to_ras.tolist(),
        "shape": [int(n) for n in scan.shape],
        "spacing": [round(float(n), 4) for n in scan.spacing],
        "size": round(2 * float(np.sqrt(np.trace(prepared.tissue_covariance))), 2),
        "window": [float(value) for value in prepared.window],
        "median": round(float(np.median(tissue)), 3) if tissue.size else 0.0,
    }
    return Loaded(values, inside, about)
