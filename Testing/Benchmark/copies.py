"""Copies of a volume under a known header: as it is, cut, resampled, in another contrast (task ``anatomies``).

Every function takes a Volume (spatial/volume.py) and a generator and gives one that lies in the same place: the truth
between a volume and its copy is what is put into the copy's header afterwards.
"""

from __future__ import annotations

import numpy as np

from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.sampling import Prepared
from SpatialDiffusionCore.spatial.volume import Volume

from . import hard

#: The kinds of copies, as the command line and the report have them.
KINDS = {
    "A": "header only",
    "K": "longest axis cut to 65 %, the next to 80 %, gamma 0.7, 4 % noise",
    "R": "other spacing, axis order and flips, 3 % noise",
    "C": "inverted contrast of the tissue",
    "I": "inverted throughout, air included",
    "S": "stretched by up to 25 % and sheared, one artifact of the task hard",
}

#: What is kept of the tissue's longest axis and of the next one.
KEPT = (0.65, 0.80)

GAMMA, CUT_NOISE, RESAMPLED_NOISE = 0.7, 0.04, 0.03

#: Factors of the spacing, drawn evenly in their logarithm for each axis.
SPACING = (0.8, 1.6)

#: A resampled copy keeps at least so many voxels along an axis (and never more than it had).
FEWEST = 16

#: The largest scale along an axis (and the inverse of the smallest), the largest shear: those of the task hard.
STRETCH = 1.25, 0.08

#: Turns of the header, degrees, and its shift as a share of the tissue's size.
TURNS, SHIFT = (40.0, 180.0), 0.25


def size_of(prepared: Prepared) -> float:
    """Twice the root mean square radius of the tissue, mm."""
    return 2 * float(np.sqrt(np.trace(prepared.tissue_covariance)))


def any_turn(
    generator: np.random.Generator, prepared: Prepared, turns: tuple[float, float] = TURNS
) -> tuple[float, np.ndarray]:
    """(degrees, 4×4 RAS → RAS): a turn about any axis through the tissue's center and a shift in any direction."""
    degrees = float(generator.uniform(*turns))
    axis, direction = generator.normal(size=(2, 3))
    shift = SHIFT * size_of(prepared) * direction / np.linalg.norm(direction)
    turn = geometry.rotation_about(axis, np.radians(degrees))
    return degrees, geometry.about(turn, prepared.tissue_center, shift)


def make_copy(kind: str, source: Volume, prepared: Prepared, generator: np.random.Generator) -> Volume:
    """A copy of a kind; the volume itself for kind A."""
    makers = {"K": cut, "R": resampled, "C": inverted_tissue, "I": inverted, "S": with_artifact}
    return makers[kind](source, prepared, generator) if kind in makers else source


def any_stretch(generator: np.random.Generator, prepared: Prepared) -> np.ndarray:
    """4×4 RAS → RAS about the tissue's center: scales and shear as the task hard draws them, no turn."""
    return geometry.about(hard.draw_transform(generator, 0.0, *STRETCH), prepared.tissue_center, np.zeros(3))


def _noisy(values: np.ndarray, range_: float, share: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise of a share of the window; where nothing was below 0, its magnitude, as in MR."""
    noisy = values + share * range_ * generator.standard_normal(values.shape, dtype=np.float32)
    return np.abs(noisy) if values.min() >= 0 else noisy


def tissue_box(source: Volume, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel (exclusive) of the tissue along each axis, without its outermost per cent."""
    places = np.argwhere(source.data > prepared.threshold)
    low, high = np.percentile(places, (1, 99), axis=0)
    return np.floor(low).astype(int), np.ceil(high).astype(int) + 1


def cut(source: Volume, prepared: Prepared, generator: np.random.Generator) -> Volume:
    """The field of view cut anywhere along the tissue's longest axis and the next one; gamma and noise.

    A window that holds 65 % (80 %) of the tissue's length stays; what lies beside the tissue goes with what is cut.
    """
    first, last = tissue_box(source, prepared)
    order = np.argsort(-(last - first) * source.spacing)
    low, high = np.zeros(3, int), np.array(source.shape)
    for axis, share in zip(order, KEPT):
        length = last[axis] - first[axis]
        kept = max(1, round(share * length))
        low[axis] = first[axis] + generator.integers(0, length - kept + 1)
        high[axis] = low[axis] + kept
    part = source.data[tuple(slice(a, b) for a, b in zip(low, high))]
    least, most = prepared.window
    values = np.clip((part - least) / (most - least), 0, None) ** GAMMA * (most - least) + least
    values = _noisy(values.astype(np.float32), most - least, CUT_NOISE, generator)
    return Volume(values, source.voxel_to_ras @ geometry.from_parts(np.eye(3), low), "cut copy")


def resampled(source: Volume, prepared: Prepared, generator: np.random.Generator) -> Volume:
    """The same field of view with other voxels, in another order of axes, some of them reversed; noise."""
    from scipy.ndimage import affine_transform, gaussian_filter

    shape = np.array(source.shape)
    factors = np.exp(generator.uniform(*np.log(SPACING), 3))
    wanted = np.maximum(np.minimum(shape, FEWEST), np.rint(shape / factors)).astype(int)
    factors = shape / wanted
    offset = (factors - 1) / 2  # the outer faces of the field of view stay
    # A Gaussian of the width that coarser voxels average over, against aliasing.
    blurred = gaussian_filter(source.data, np.sqrt(np.maximum(factors**2 - 1, 0) / 12), mode="nearest")
    values = affine_transform(blurred, factors, offset, tuple(wanted), order=1, mode="nearest")
    values = _noisy(values.astype(np.float32), prepared.window[1] - prepared.window[0], RESAMPLED_NOISE, generator)
    to_source = geometry.from_parts(np.diag(factors), offset)
    order, flips = generator.permutation(3), generator.integers(0, 2, 3).astype(bool)
    values = np.flip(values.transpose(order), tuple(np.flatnonzero(flips)))
    swap = np.eye(4)[:, [*order, 3]]
    swap[:3, 3] = swap[:3, :3] @ np.where(flips, np.array(values.shape) - 1, 0)
    swap[:3, :3] = swap[:3, :3] * np.where(flips, -1, 1)
    return Volume(np.ascontiguousarray(values), source.voxel_to_ras @ to_source @ swap, "resampled copy")


def _reversed_values(source: Volume, prepared: Prepared) -> np.ndarray:
    least, most = prepared.window
    return (least + most - np.clip(source.data, least, most)).astype(np.float32)


def inverted(source: Volume, prepared: Prepared, generator: np.random.Generator) -> Volume:
    """Dark becomes bright and bright dark, air included."""
    return Volume(_reversed_values(source, prepared), source.voxel_to_ras, "inverted copy")


def inverted_tissue(source: Volume, prepared: Prepared, generator: np.random.Generator) -> Volume:
    """The same inside the tissue, its holes filled; the air around it stays as it is."""
    from scipy.ndimage import binary_closing, binary_fill_holes

    tissue = np.pad(source.data > prepared.threshold, 2)
    inside = binary_fill_holes(binary_closing(tissue, np.ones((3, 3, 3))))[2:-2, 2:-2, 2:-2]
    values = np.where(inside, _reversed_values(source, prepared), source.data)
    return Volume(values.astype(np.float32), source.voxel_to_ras, "inverted copy")


def with_artifact(source: Volume, prepared: Prepared, generator: np.random.Generator) -> Volume:
    """One of the artifacts of the task hard, or none; its lengths are shares of the field of view, as there."""
    import torch

    least, most = prepared.window
    values = np.clip((source.data - least) / (most - least), 0, 1).astype(np.float32)
    name = list(hard.CONDITIONS)[generator.integers(len(hard.CONDITIONS))]
    values, header = hard.corrupt(
        torch.from_numpy(values)[None, None], source.voxel_to_ras, hard.CONDITIONS[name], generator
    )
    return Volume(values, header, f"copy with {name}")
