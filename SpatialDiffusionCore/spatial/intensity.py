"""What values mean: Hounsfield units, values that fill what a scanner did not see, NaN, and what to write outside."""

from __future__ import annotations

import numpy as np

from . import geometry

#: The least Hounsfield unit of 12-bit scanners, air.
AIR = -1024.0

#: Beyond this share of the voxels a value at the end of the range is no outlier, which percentiles leave out already.
_PADDING_SHARE = 0.002

#: A value of tissue is seldom on the faces of a volume; padding outside a round or turned field of view always is.
_PADDING_ON_FACES = 0.05

#: With fewer different values than this, a volume is a label map or a drawing, whose extremes mean something.
_FEWEST_VALUES = 16


def subsample(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(at most 64³ of an I×J×K array's voxels, evenly spaced, float32; their 4×4 voxel → voxel matrix)."""
    stride = tuple(-(-n // 64) for n in data.shape)
    start = tuple(s // 2 for s in stride)
    part = data[tuple(slice(b, None, s) for b, s in zip(start, stride))]
    with np.errstate(over="ignore"):
        return np.asarray(part, np.float32), geometry.from_parts(np.diag(stride), start)


def is_finite(data: np.ndarray) -> bool:
    """Whether all values are finite (by their sum, which needs no array of its own)."""
    if data.dtype.kind != "f":
        return True
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(np.isfinite(data.sum(dtype=np.float64)) or np.isfinite(data).all())


def lowest(values: np.ndarray) -> float:
    """The least of the usual values: of hardly any that lie far below all others none counts."""
    # Not between two values: of few, one that is far off would be half of the second.
    least, low = (float(v) for v in np.percentile(values, (0.0, 0.05), method="higher"))
    high = float(np.percentile(values, 99.5))
    return low if low - least > high - low > 0 else least


def background(values: np.ndarray) -> float:
    """What stands for voxels without a value: no signal, in maps of both signs the least of the usual values."""
    return min(0.0, lowest(values))


def padding_above(values: np.ndarray) -> float | None:
    """The value above which an I×J×K sample holds padding (unsigned files turn -2000 into 63536), None without any."""
    most = values.max()
    body = _body(values, values < most)
    if body is None or most - body[1] <= body[1] - body[0]:
        return None
    low, high = body
    # Padding that was interpolated goes on towards the body: what is three times as far as that is wide is padding,
    # too.
    limit = min(high + 0.5 * (most - high), high + 3 * (high - low))
    faces = [values.take(end, axis) for axis in range(3) for end in (0, -1)]
    on_faces = np.mean(np.concatenate([(face > limit).ravel() for face in faces]))
    return limit if on_faces > _PADDING_ON_FACES else None


def floor(values: np.ndarray) -> float:
    """The value that is background or less: the least, but not padding that lies far below all others.

    In CT that is the air of 12-bit scanners, where they put another value for what they did not see.
    """
    if _padded_ct(values):
        return AIR
    least = lowest(values)
    body = _body(values, values > values.min()) if least < 0 else None
    return least if body is None or body[0] - least <= body[1] - body[0] else body[0]


def _body(values: np.ndarray, others: np.ndarray) -> tuple[float, float] | None:
    """Where most of the values lie that are not at the end of the range; None where too few are, or too few there."""
    usual = values[others]
    if not _PADDING_SHARE < usual.size / values.size < 1 - _PADDING_SHARE:
        return None
    low, high = (float(v) for v in np.percentile(usual, (5.0, 95.0)))
    return (low, high) if np.unique(usual).size >= _FEWEST_VALUES else None


def _padded_ct(values: np.ndarray) -> bool:
    """Whether values are Hounsfield units with one for what the scanner did not see, far below that of air."""
    padding = values < AIR - 100
    if not padding.any() or not (np.abs(values - AIR) < 100).mean() > 0.01:
        return False
    return bool((values[padding] == values.min()).mean() > 0.9)


def outside(data: np.ndarray) -> float:
    """What lies outside the field of view of an I×J×K array: 0, in CT its darkest air, not its padding."""
    if data.size == 0 or data.dtype.kind in "bu":
        return 0.0
    values = subsample(data)[0]
    values = values[np.isfinite(values)]
    if values.size == 0 or values.min() > -900:
        return 0.0
    seen = values[values >= AIR - 100]
    below = values[values < AIR - 100]
    odd = below[below != values.min()].size  # a map of both signs goes on below air, a CT has one value there
    air = (np.abs(seen + 1000) < 130).mean() if seen.size else 0.0
    return float(seen.min()) if air > 0.01 and odd <= 0.001 * values.size else 0.0


#: Of the voxels that are no background, the share with a neighbour of the same value from which a volume is taken for
#: labels: 0.8 and more in label maps, 0.3 and less in 8-bit scans. Chosen between these.
_ALIKE = 0.6


def shows_labels(data: np.ndarray) -> bool:
    """Whether an I×J×K array looks like a label map or a mask: whole numbers in areas of one value each."""
    part = data[tuple(slice(max(0, n // 2 - 64), n // 2 + 64) for n in data.shape)]
    if part.dtype == bool:
        return True
    if not np.isfinite(part).all() or not (part == np.round(part)).all():
        return False
    values, counts = np.unique(part, return_counts=True)
    if not 2 <= len(values) <= 1024:
        return False
    background = values[counts.argmax()]
    same = [np.diff(part, axis=axis) == 0 for axis in range(3) if part.shape[axis] > 1]
    inside = [np.delete(part, -1, axis) != background for axis in range(3) if part.shape[axis] > 1]
    shared = sum(int((alike & within).sum()) for alike, within in zip(same, inside))
    return shared >= _ALIKE * max(1, sum(int(within.sum()) for within in inside))
