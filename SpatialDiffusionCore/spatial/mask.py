"""Masks: volumes that are not 0 where something matters, on any grid, however thin or small that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import geometry
from .volume import Grid, Volume, resample


def binary(mask: Volume) -> Volume:
    """The mask as 0 and 1 (uint8); NaN is outside, as some programs write it."""
    inside = mask.data != 0
    if mask.data.dtype.kind == "f":
        inside &= ~np.isnan(mask.data)
    return replace(mask, data=inside.astype(np.uint8))


def on_grid(mask: Volume, grid: Grid) -> np.ndarray:
    """Which voxels of a grid lie inside a binary mask, as booleans of its shape.

    Where the grid is coarser than the mask, a voxel is inside with half of its mask voxels; of a mask so thin that this
    would lose half of it, already with one.
    """
    from scipy.ndimage import uniform_filter

    to_voxel = np.linalg.inv(mask.voxel_to_ras) @ grid.voxel_to_ras
    steps = np.linalg.norm(to_voxel[:3, :3], axis=1)
    widths = np.minimum(np.maximum(1, np.ceil(steps - 0.05)), mask.shape).astype(int)
    if widths.max() > 1:
        share = uniform_filter(mask.data.astype(np.float32), tuple(widths), mode="constant")
        inside = share > 0.5 - 1e-4
        if 2 * inside.sum() < mask.data.sum():
            inside = share > 0.5 / widths.prod()
        # A window of even width lies half a voxel before the voxel whose number it has.
        before = geometry.from_parts(np.eye(3), -0.5 * (widths % 2 == 0))
        mask = Volume(inside.astype(np.uint8), mask.voxel_to_ras @ before, mask.name)
    return resample(mask, grid, interpolation="nearest", background=0).data != 0


def points_within(mask: Volume, volume: Volume) -> np.ndarray:
    """RAS mm (N×3) of the voxels inside a binary mask whose centers lie in the field of view of ``volume``."""
    points = geometry.transform_points(mask.voxel_to_ras, np.argwhere(mask.data != 0))
    voxels = geometry.transform_points(np.linalg.inv(volume.voxel_to_ras), points)
    return points[((voxels >= -0.5) & (voxels <= np.array(volume.shape) - 0.5)).all(axis=1)]
