"""How one scan becomes a volume of the model's grid in 0..1.

"canonical" is what registration does with every volume: oriented by the header, centered on the tissue, voxels
of one size. "published" is the published loading of the modality, on array axes and without the header.
"""
from __future__ import annotations

import numpy as np
from SpatialDiffusionCore import geometry, volume
from SpatialDiffusionCore.errors import InputError

LOADERS = ("canonical", "published")


def oriented(modality):
    """Whether scans of a modality have anatomical orientation; own (unknown) modalities do."""
    from SpatialDiffusionCore.modality import MODALITIES

    return getattr(MODALITIES.get(modality), "oriented", True)


def load(path, loader, modality, grid):
    """(D×H×W float32 in 0..1, mean, covariance) of a scan.

    grid: {"size", "spacing"}. mean (3) and covariance (3×3) are those of the tissue's normalized coordinates
    (x, y, z), as lists. Raises InputError where the scan cannot be used.
    """
    scan = volume.load(path)
    volume.validate(scan)
    if loader == "canonical":
        return _canonical(scan, modality, grid)
    if loader == "published":
        from .published import load_published

        cube = load_published(scan.data, modality, tuple(grid["size"]), scan.spacing)
        return (cube, *moments(cube))
    raise InputError(f"Unknown loader {loader!r}; choose one of: {', '.join(LOADERS)}.")


def _canonical(scan, modality, grid):
    prepared = volume.prepare(scan)
    target = volume.canonical_grid(prepared, grid["size"], grid["spacing"], oriented(modality))
    cube = volume.sample(prepared, target).numpy()[0, 0]
    if not cube.any():
        raise InputError(f"{scan.name} is empty on the model's grid.")
    to_normalized = np.linalg.inv(target.normalized_to_ras)
    mean = geometry.transform_points(to_normalized, prepared.tissue_center[None])[0]
    linear = to_normalized[:3, :3]
    return cube, mean.tolist(), (linear @ prepared.tissue_covariance @ linear.T).tolist()


def moments(cube):
    """Mean and covariance (lists) of the normalized coordinates (x, y, z) of what Otsu's threshold keeps."""
    inside = cube > volume.otsu(cube)
    if not inside.any():
        inside = cube > cube.min()
    points = geometry.transform_points(np.linalg.inv(geometry.normalized_to_voxel(cube.shape)), np.argwhere(inside))
    return points.mean(0).tolist(), np.cov(points.T, bias=True).tolist()
