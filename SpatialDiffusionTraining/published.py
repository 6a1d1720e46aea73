"""The published loading of each modality: array axes only, no header, ending in 0..1 by minimum and maximum.

Sizes are (D, H, W) = (I, J, K) of the array. A volume larger than the grid is scaled down by one factor for all
axes (T1, T2 and others) or loses what lies beyond it (OCT, OCTA, whose voxels must keep their size).
"""
from __future__ import annotations

import numpy as np
from scipy.ndimage import zoom

from SpatialDiffusionCore import modality as modalities

#: Part of the 8-bit range above which a voxel of a retinal scan counts as tissue.
TISSUE = {"oct": 0.8, "octa": 0.7}


def load_published(data, modality, size, spacing):
    """The D×H×W float32 volume in 0..1 that the published method sees of an array of a modality.

    spacing: mm along the array's axes (T2 only). Modalities without a published loading are padded like T1.
    """
    kind = getattr(modalities.MODALITIES.get(modality), "published_loader", "minmax")
    data = unit_range(np.asarray(data, np.float32))
    if kind in TISSUE:
        return unit_range(retina(data, TISSUE[kind], size))
    if kind == "t2":
        isotropic = resize(data, np.asarray(spacing, float) / min(spacing))
        return unit_range(pad(equalize(fit(isotropic, size)), size))
    return unit_range(pad(fit(data, size), size))


def unit_range(data):
    """Scaled so that the smallest value is 0 and the largest 1."""
    low, high = float(data.min()), float(data.max())
    return ((data - low) / (high - low if high > low else 1)).astype(np.float32)


def resize(data, factors):
    """Linear interpolation by one factor per axis."""
    if np.allclose(factors, 1):
        return data
    return zoom(data, factors, order=1, mode="nearest", grid_mode=True).astype(np.float32)


def fit(data, size):
    """Scaled down by one factor for all axes where the array does not fit the size."""
    factor = min(1.0, *(n / m for n, m in zip(size, data.shape)))
    return resize(data, [factor] * 3)


def pad(data, size, at_start=()):
    """Zeros around the array up to the size, centered; along the axes `at_start` the array stays at the start.

    What exceeds the size is cut off in the same way.
    """
    out = np.zeros(size, np.float32)
    source, target = [], []
    for axis, (have, want) in enumerate(zip(data.shape, size)):
        common = min(have, want)
        begin = 0 if axis in at_start else (have - common) // 2
        place = 0 if axis in at_start else (want - common) // 2
        source.append(slice(begin, begin + common))
        target.append(slice(place, place + common))
    out[tuple(target)] = data[tuple(source)]
    return out


def retina(data, threshold, size):
    """Turned over on axes 1 and 2, without the band above the tissue on axis 1, padded to size."""
    data = data[:, ::-1, ::-1]
    tissue = np.flatnonzero((data > threshold).any(axis=(0, 2)))
    return pad(data[:, tissue[0] if len(tissue) else 0 :], size, at_start=(1,))


def equalize(data, kernel=32, clip=0.05, bins=256):
    """Contrast-limited adaptive histogram equalization of a volume in 0..1 (Zuiderveld, Graphics Gems IV, 1994).

    Tiles of kernel³ voxels get their own map from intensity to rank; no bin holds more than `clip` of a tile (the
    rest is spread over all bins), and between the tiles' centers the eight nearest maps are interpolated.
    """
    tiles = [max(1, -(-n // kernel)) for n in data.shape]
    widths = [(0, t * kernel - n) for t, n in zip(tiles, data.shape)]
    level = np.minimum((np.pad(data, widths, mode="symmetric") * bins).astype(np.int64), bins - 1)
    maps = np.empty((*tiles, bins), np.float32)
    for tile in np.ndindex(*tiles):
        block = level[tuple(slice(i * kernel, (i + 1) * kernel) for i in tile)]
        count = np.bincount(block.ravel(), minlength=bins).astype(np.float64)
        limit = max(1.0, clip * block.size)
        excess = np.maximum(count - limit, 0).sum()
        count = np.minimum(count, limit) + excess / bins
        maps[tile] = np.cumsum(count) / count.sum()
    level = level[tuple(slice(n) for n in data.shape)]
    neighbors = []
    for axis, (n, t) in enumerate(zip(data.shape, tiles)):
        place = np.clip((np.arange(n) + 0.5) / kernel - 0.5, 0, t - 1)
        low = np.minimum(place.astype(int), max(0, t - 2))
        shape = [1, 1, 1]
        shape[axis] = n
        part = (place - low).reshape(shape).astype(np.float32)
        low = low.reshape(shape)
        neighbors.append(((low, 1 - part), (np.minimum(low + 1, t - 1), part)))
    out = np.zeros(data.shape, np.float32)
    for a, weight_a in neighbors[0]:
        for b, weight_b in neighbors[1]:
            for c, weight_c in neighbors[2]:
                out += weight_a * weight_b * weight_c * maps[a, b, c, level]
    return out
