"""How one scan becomes a volume of the model's grid in 0..1: exactly as registration will do it.

"canonical" is the model's cube: oriented by the header, centered on the tissue, voxels of one size. "published" is
the published loading of the modality.
"""
from __future__ import annotations

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.modality import MODALITIES
from SpatialDiffusionCore.modelfile.model_cube import model_cube
from SpatialDiffusionCore.spatial import geometry, volume, volume_file

LOADERS = ("canonical", "published")


def load(path, loader, modality, grid, mask=None):
    """(D×H×W float32 in 0..1, mean, covariance, mask, normalized → RAS of the grid as 4×4 lists) of a scan.

    grid: {"size", "spacing"}. mean (3) and covariance (3×3) are those of the tissue's normalized coordinates
    (x, y, z), as lists. mask: a file with voxels other than 0 inside; it comes back as D×H×W uint8 0 or 1 on the
    grid (None without one). A modality that the core does not know is loaded like "any". Raises InputError where the
    scan cannot be used.
    """
    if loader not in LOADERS:
        raise InputError(f"Unknown loader {loader!r}; choose one of: {', '.join(LOADERS)}.")
    scan = volume_file.load(path)
    volume.validate(scan)
    key = modality if modality in MODALITIES else "any"
    cube = model_cube(scan, None, key, {"grid": {**grid, "loading": loader}}, "cpu")
    values = cube.values.numpy()[0, 0]
    if values.max() <= values.min():
        raise InputError(f"{scan.name} is empty on the model's grid.")
    to_normalized = np.linalg.inv(cube.grid.normalized_to_ras)
    mean = geometry.transform_points(to_normalized, cube.prepared.tissue_center[None])[0]
    linear = to_normalized[:3, :3]
    covariance = linear @ cube.prepared.tissue_covariance @ linear.T
    inside = None
    if mask is not None:
        inside = (volume.resample(volume_file.load(mask), cube.grid, interpolation="nearest").data != 0).astype(np.uint8)
    return values, mean.tolist(), covariance.tolist(), inside, cube.grid.normalized_to_ras.tolist()
