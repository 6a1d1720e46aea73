"""How the published method puts a volume on its grid, kept exact in world coordinates.

Voxels are taken one for one wherever the volume fits the grid; the padding, the flips and the cropping live in the
grid's voxel → RAS matrix, so the network's affine converts to RAS like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import InputError
from ..spatial import geometry
from ..spatial.sampling import Prepared
from ..spatial.volume import Grid, Volume, resample

#: Share of the intensity range above which the first voxel along axis 1 counts as tissue.
BAND = {"oct": 0.8, "octa": 0.7}

#: Adaptive histogram equalization of T2 head-and-neck volumes: kernel in voxels and clip limit.
EQUALIZATION = (32, 0.05)


def published(prepared: Prepared, loader: str, size: Sequence[int]) -> tuple[Prepared, Grid]:
    """(Prepared, Grid): what to sample, and where, to feed a published model; loader: see Modality.published_loader.

    Intensities go from 0 to 1 by the volume's own minimum and maximum (inside ``window``).
    """
    volume = prepared.volume
    if loader in BAND:
        volume, grid = _retina(volume, BAND[loader], size)
    elif loader == "t2":
        volume, grid = _isotropic_equalized(volume, size)
    else:
        grid = _centered(volume, size)
    window = (float(volume.data.min()), float(volume.data.max()))
    return replace(prepared, volume=volume, window=window), grid


def _centered(volume: Volume, size: Sequence[int]) -> Grid:
    """The volume's own voxels in the middle of ``size``; a larger volume is scaled down evenly until it fits."""
    scale = max(1.0, *(n / s for n, s in zip(volume.shape, size)))
    if scale == 1.0:
        offset = -np.array([(s - n) // 2 for n, s in zip(volume.shape, size)], float)
    else:
        offset = (np.array(volume.shape) - 1) / 2 - scale * (np.array(size) - 1) / 2
    return Grid(tuple(size), volume.voxel_to_ras @ geometry.from_parts(np.eye(3) * scale, offset))


def _retina(volume: Volume, band: float, size: Sequence[int]) -> tuple[Volume, Grid]:
    """Flipped on axes 1 and 2, the band above the tissue cropped on axis 1, padded to ``size``."""
    flip = np.eye(4)
    for axis in (1, 2):
        flip[axis, axis], flip[axis, 3] = -1.0, volume.shape[axis] - 1
    flipped = Volume(volume.data[:, ::-1, ::-1], volume.voxel_to_ras @ flip, volume.name)
    low, high = float(volume.data.min()), float(volume.data.max())
    bright = (flipped.data > low + band * (high - low)).any(axis=(0, 2))
    first = int(np.argmax(bright)) if bright.any() else 0
    cropped = Volume(
        np.ascontiguousarray(flipped.data[:, first:]),
        flipped.voxel_to_ras @ geometry.from_parts(np.eye(3), (0, first, 0)),
        volume.name,
    )
    # Retinal voxels keep their size; along axis 1 the tissue stays at the start.
    offset = -np.array([(s - n) // 2 for n, s in zip(cropped.shape, size)], float)
    offset[1] = 0
    return cropped, Grid(tuple(size), cropped.voxel_to_ras @ geometry.from_parts(np.eye(3), offset))


def _isotropic_equalized(volume: Volume, size: Sequence[int]) -> tuple[Volume, Grid]:
    """Isotropic voxels that fit ``size``, adaptive histogram equalization, padded."""
    try:
        from skimage.exposure import equalize_adapthist
    except ImportError:
        raise InputError(
            "The published loading of T2 head-and-neck volumes needs scikit-image; install it (pip install "
            "scikit-image) or use a model of this program's own."
        ) from None
    extent = np.array(volume.shape) * volume.spacing
    spacing = float(max(volume.spacing.min(), (extent / np.array(size)).max()))
    shape = tuple(int(max(1, min(s, round(e / spacing)))) for e, s in zip(extent, size))
    box = Grid(volume.shape, volume.voxel_to_ras)
    center = geometry.transform_points(volume.voxel_to_ras, (np.array([volume.shape]) - 1) / 2)[0]
    axes = box.voxel_to_ras[:3, :3] / volume.spacing * spacing
    grid = Grid(shape, geometry.from_parts(axes, center - axes @ ((np.array(shape) - 1) / 2)))
    data = resample(volume, grid, whole_voxels=False).data  # as imported checkpoints were measured
    data = (data - data.min()) / max(float(np.ptp(data)), 1e-12)
    kernel = [min(EQUALIZATION[0], n) for n in shape]
    data = equalize_adapthist(data, kernel_size=kernel, clip_limit=EQUALIZATION[1]).astype(np.float32)
    equalized = Volume(data, grid.voxel_to_ras, volume.name)
    return equalized, _centered(equalized, size)
