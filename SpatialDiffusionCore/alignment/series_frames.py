"""Frames of a series laid on a reference frame: same subject, same voxel grid, small motion.

Everything is relative to the voxel and to the size of the tissue, so a head, a mouse and an eye are treated alike.
Transforms are 4×4, reference → frame, in the *series frame*: mm along the voxel axes from the middle of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..networks.layers import blur
from ..spatial import geometry
from ..spatial.sampling import otsu
from . import gauss_newton
from .descriptors import self_similarity


@dataclass(frozen=True)
class Settings:
    """Tuned numbers. Measured on a real BOLD frame moved by up to 3 mm and 3° (3 mm voxels, 2 % noise, 12 frames)."""

    #: Blur in voxels of each level. At the finest, 0.7 ends 0.023 mm off (median), 1.0 0.018, 1.4 0.015 to 0.017;
    #: less blur leaves the bias of linear interpolation, more costs small volumes their edges.
    sigma: float = 1.0
    #: Voxels of the two coarse levels, as a part of the size of the tissue (twice its RMS radius). Chosen.
    coarse: tuple = (1 / 10, 1 / 20)
    #: Points drawn per coarse level, and at the finest in the first and in the second pass: 50,000 ends where 20,000
    #: do, 8,000 7 % further off.
    points: tuple = (2000, 4000, 8000, 20000)
    #: Blurs that a volume's faces are left out by, since the blur there knows one side only: without it 0.142 mm at
    #: worst instead of 0.080.
    margin: float = 2.0
    #: Most voxels at the finest level; larger volumes are averaged along their finest axes. Chosen, for speed.
    voxels: int = 2**21
    #: The last step in voxels at which a level ends, coarse and finest. Chosen.
    enough: tuple = (0.02, 0.003)
    #: Iterations at most. Chosen; three to six are used.
    iterations: int = 12


SETTINGS = Settings()


@dataclass(frozen=True)
class Level:
    """Voxels averaged in blocks of ``factors``, and how many points are drawn."""

    factors: tuple
    points: int
    enough: float


@dataclass(frozen=True)
class Layout:
    """What all frames of a series share: array shape, spacing (3, mm), and the levels from coarse to fine. The
    last two have the finest voxels: one for the first pass, one with more points for the second."""

    shape: tuple
    spacing: np.ndarray
    levels: tuple

    def offset(self, level: Level) -> np.ndarray:
        """4×4: the level's own frame (mm from the middle of its voxels) → the series frame."""
        used = np.array(self.shape) // level.factors * level.factors
        return geometry.from_parts(np.eye(3), (used - np.array(self.shape)) / 2 * self.spacing)


def layout(
    shape: Sequence[int], spacing: Sequence[float] | np.ndarray, size: float, settings: Settings = SETTINGS
) -> Layout:
    """The levels for a grid of ``shape`` and ``spacing`` (mm) with tissue of a ``size`` in mm."""
    counts, steps = np.array(shape), np.array(spacing, float)
    finest = np.ones(3, int)
    while np.prod(counts // finest) > settings.voxels:
        finest[np.argmin(np.where(counts // finest > 16, steps * finest, np.inf))] *= 2
    levels = []
    for part, points in zip(settings.coarse, settings.points):
        most = np.maximum(counts // 8, 1)  # eight voxels along each axis at least, where there are as many
        factors = np.maximum(np.minimum((part * size / steps).astype(int), most), finest)
        if (factors > finest).any():
            levels.append(Level(tuple(int(f) for f in factors), points, settings.enough[0]))
    for points, enough in zip(settings.points[-2:], settings.enough):
        levels.append(Level(tuple(int(f) for f in finest), points, enough))
    return Layout(tuple(int(n) for n in counts), steps, tuple(levels))


class Frame:
    """One frame's array (I×J×K numbers), seen at the levels of a layout; each is made when it is first asked for."""

    def __init__(
        self, values: np.ndarray, common: Layout, device: str = "cpu", seed: int = 0, tissue: np.ndarray | None = None
    ) -> None:
        """tissue: I×J×K array, not 0 where the volume matters (default: what Otsu's threshold tells)."""
        self.layout, self.seed = common, seed
        array = np.require(values, np.float32, ["C", "W"])
        if not np.isfinite(array).all():
            array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
        self.values = torch.from_numpy(array)[None, None].to(device)
        self.mask = None if tissue is None else torch.from_numpy(np.asarray(tissue != 0, np.float32))[None, None]
        coarse = self._pooled(self.values, common.levels[0].factors)[0, 0].cpu().numpy()
        low, high = np.percentile(coarse, (0, 99.5))
        self.empty = not high > low
        self.window = (float(low), float(high) if high > low else float(low) + 1.0)
        clipped = np.clip(coarse, *self.window)
        self.threshold = 0.5 if self.empty else (otsu(clipped) - low) / (high - low)
        self._sides: dict = {}
        self._blurred: dict = {}

    @staticmethod
    def _pooled(values: torch.Tensor, factors: tuple) -> torch.Tensor:
        return values if max(factors) == 1 else F.avg_pool3d(values, factors)

    def blurred(self, factors: tuple) -> torch.Tensor:
        """1×1×D×H×W: the frame in 0…1 (about), averaged in blocks of ``factors`` voxels and blurred."""
        if factors not in self._blurred:
            low, high = self.window
            self._blurred[factors] = blur((self._pooled(self.values, factors) - low) / (high - low), SETTINGS.sigma)
        return self._blurred[factors]

    def side(self, index: int, alike: bool = True) -> gauss_newton.Side:
        """The frame at level ``index``: blurred intensities, or self-similarity where frames are not ``alike``."""
        if (index, alike) not in self._sides:
            level = self.layout.levels[index]
            blurred = self.blurred(level.factors)
            support = torch.zeros_like(blurred)
            support[_inner(blurred.shape[2:])] = 1
            tissue = blurred > self.threshold
            if self.mask is not None:
                tissue = self._pooled(self.mask, level.factors).to(blurred.device) > 0.5
            features = blurred if alike else self_similarity(blurred)
            spacing = self.layout.spacing * level.factors
            self._sides[index, alike] = gauss_newton.side(
                features, support, tissue * support, spacing, level.points, self.seed + index
            )
        return self._sides[index, alike]


def _inner(shape: Sequence[int]) -> tuple:
    """Slices of what lies off the faces by the margin; at most a sixth of a short axis is left out at each end."""
    wide = int(np.ceil(SETTINGS.margin * SETTINGS.sigma))
    cut = [min(wide, n // 6) for n in shape]
    return (..., *(slice(c, n - c) for c, n in zip(cut, shape)))


def align(
    reference: Frame,
    frame: Frame,
    starts: Sequence[np.ndarray] | np.ndarray,
    *,
    kind: str = "rigid",
    alike: bool = True,
    levels: Sequence[int] | None = None,
) -> tuple[np.ndarray, float, float]:
    """(the best transform, 4×4 reference → frame; its similarity; its overlap) begun from B×4×4 starts.

    levels: which ones to go through (default: all).
    """
    common = reference.layout
    found = np.array(starts, float)
    for index in range(len(common.levels)) if levels is None else levels:
        sides = reference.side(index, alike), frame.side(index, alike)
        if not all(len(one.points) for one in sides):
            return found[0], 0.0, 0.0
        offset, back = common.offset(common.levels[index]), geometry.inverse(common.offset(common.levels[index]))
        found = back @ found @ offset
        found = gauss_newton.refine(
            *sides,
            found,
            kind=kind,
            iterations=SETTINGS.iterations,
            linear_fit=alike,
            longest=float(np.max(sides[0].spacing)) * 2,
            enough=common.levels[index].enough,
        )
        scores, overlaps = gauss_newton.correlation(*sides, found)
        best = int(np.argmax(scores * np.sqrt(np.maximum(overlaps, 0))))
        found = offset @ found[best : best + 1] @ back
    return found[0], float(scores[best]), float(overlaps[best])


def precision(reference: Frame, frame: Frame, found: np.ndarray, *, kind: str = "rigid", alike: bool = True) -> float:
    """Estimated error in mm (RMS over the tissue) of a transform, from how far two halves of the points disagree.

    The mean of two independent halves is off by half their distance.
    """
    common, last = reference.layout, len(reference.layout.levels) - 1
    sides = reference.side(last, alike), frame.side(last, alike)
    offset = common.offset(common.levels[last])
    start = geometry.inverse(offset) @ found @ offset
    chosen = []
    for one in sides:
        first = torch.zeros(len(one.points), device=one.points.device)
        first[::2] = 1
        chosen.append(torch.stack([first, 1 - first]))
    halves = gauss_newton.refine(
        *sides, np.stack([start, start]), kind=kind, iterations=3, linear_fit=alike, enough=0.0, chosen=tuple(chosen)
    )
    points = sides[0].points.cpu().double().numpy()
    mean, covariance = points.mean(0), np.cov(points.T, bias=True)
    return geometry.displacement_rms(halves[0], halves[1], mean, covariance) / 2


def similarity_at_rest(frames: Sequence[Frame]) -> np.ndarray:
    """N×N correlations of frames as they lie, at the coarsest level."""
    rows = []
    for one in frames:
        rows.append(one.blurred(one.layout.levels[0].factors)[0, 0].flatten().cpu().numpy())
    values = np.array(rows, float)
    return np.atleast_2d(np.corrcoef(values))


def tissue_of(values: np.ndarray, spacing: Sequence[float] | np.ndarray, mask: np.ndarray | None = None) -> tuple:
    """(mean, 3; covariance, 3×3; mm along the axes from the middle of the grid) of the tissue of an array."""
    from ..spatial.sampling import prepare
    from ..spatial.volume import Volume

    frame = geometry.from_parts(np.diag(spacing), -(np.array(values.shape) - 1) / 2 * spacing)
    known = prepare(Volume(values, frame), None if mask is None else Volume(mask, frame))
    return known.tissue_center, known.tissue_covariance
