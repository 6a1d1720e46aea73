"""A template that is the same on both sides: which side of a head is left, whether a volume is in the template's
contrast, and the way round from one volume to another.

In nearly all people the same parts are larger on one side. A volume is laid on a template that is the same on both
sides, and a linear measure of the difference between its sides says whether left is left: about 1 for a head, -1 for
its mirror image. The similarity of two people hardly tells: a brain is more like its own mirror image than like another
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ..alignment import gauss_newton, self_similarity
from ..alignment.pose_search import coarse
from ..alignment.similarity import likeness
from ..networks import layers
from ..networks.symmetric_template import SymmetricTemplate
from ..spatial import geometry
from ..spatial.cube import Cube, on_grid
from ..spatial.sampling import prepare
from ..spatial.volume import Grid, Volume

#: Standard deviations, in voxels of the template, of the blur, and of the surroundings with which a voxel is compared.
FINE, SURROUNDINGS = 0.7, 3.0

#: Least share of the template that a volume must show, and least likeness to it.
SHOWN, LIKE = 0.9, 0.25

#: Gray and white matter are what is brighter in the template's head than this share of it. A volume is in the
#: template's contrast if it correlates with it so much there: 127 T1 heads had 0.40 or more, 22 in T2, PD and FLAIR at
#: most 0.06.
MATTER, SAME = 0.35, 0.3

#: Points drawn for laying the template, coarsely and finely: a header's tilt need not be found as exactly as an answer.
POINTS = 1000, 3000


class HeadTemplate:
    """What is done with a SymmetricTemplate: laying it on a volume, its contrast, and which side of the volume is left.

    It is made of the template as it is now: make another one after the template has changed.
    """

    _made: WeakKeyDictionary = WeakKeyDictionary()

    def __init__(self, symmetric: SymmetricTemplate):
        self.size, self.spacing = symmetric.size, symmetric.spacing
        self.half, self.weights = symmetric.template.detach().clone(), symmetric.weights

    @classmethod
    def of(cls, symmetric: SymmetricTemplate) -> HeadTemplate:
        """The one of a loaded model's template, made once."""
        if symmetric not in cls._made:
            cls._made[symmetric] = cls(symmetric)
        return cls._made[symmetric]

    @property
    def grid(self) -> Grid:
        """The template's, about the origin of RAS."""
        linear = np.eye(3) * self.spacing
        return Grid(tuple(self.size), geometry.from_parts(linear, linear @ ((1 - np.array(self.size)) / 2)))

    @cached_property
    def cube(self) -> Cube:
        """The whole template as a Cube."""
        whole = torch.cat([self.half, self.half.flip(0)]).float()
        prepared = prepare(Volume(whole.cpu().numpy(), self.grid.voxel_to_ras, "template"))
        return on_grid(prepared, self.grid, self.half.device)

    @cached_property
    def inside(self) -> torch.Tensor:
        """1×1×D×H×W, 1 in the template's head."""
        return (layers.blur((self.cube.values > 0.05).float(), 1.0) > 0.5).float()

    @cached_property
    def surroundings(self) -> torch.Tensor:
        """1×1×D×H×W: how much of the template's head is around a voxel."""
        return layers.blur(self.inside, SURROUNDINGS) + 1e-3

    def lay(self, cube: Cube, starts: Sequence[np.ndarray], seed: int = 0) -> np.ndarray | None:
        """The template → volume transform (4×4 affine, RAS mm), refined from the best of some; None where it does not
        fit.

        starts: as good as a header, up to a shift of all and a size.
        """
        there, here = _middle(cube), _middle(self.cube)
        shifts = [(there - geometry.transform_points(start, here))[0] for start in starts]
        frames = [
            np.linalg.inv(cube.frame) @ geometry.from_parts(np.eye(3), shift) @ start @ self.cube.frame
            for shift, start in zip(shifts, starts)
        ]
        a, b = (coarse(one, 2.0, 0.7, POINTS[0], seed) for one in (self.cube, cube))
        if not len(b.points):
            return None
        found = gauss_newton.refine(a, b, frames, kind="similarity", iterations=8)
        best = found[int(gauss_newton.correlation(a, b, found)[0].argmax())]
        world = self.refined(cube, cube.frame @ best @ np.linalg.inv(self.cube.frame), seed)
        return world if likeness(cube, self.cube, world).similarity >= LIKE else None

    def refined(self, cube: Cube, world: np.ndarray, seed: int = 0) -> np.ndarray:
        """A template → volume transform (4×4, RAS mm) refined."""
        factor, sigma, iterations = self_similarity.LEVELS[0]
        return self_similarity.polish_level(
            cube, self.cube, world, "affine", seed, factor, sigma, iterations, count=POINTS[1]
        )

    def difference(self, cube: Cube, world: np.ndarray) -> torch.Tensor | None:
        """D/2×H×W: by how much the left of a volume differs from the right, where the template is laid on it by
        ``world`` (4×4, RAS mm); None where it shows too little of it, or in another contrast.
        """
        there, inside = cube.on(self.grid.moved(world)), self.inside
        if float((there.support * inside).sum()) < SHOWN * float(inside.sum()):
            return None
        relative = self.relative(there.values)
        same = self.contrast(relative, there.support) >= SAME
        return (relative - relative.flip(2))[0, 0, : self.size[0] // 2] if same else None

    def resemblance(self, cube: Cube, world: np.ndarray | None) -> float:
        """How alike a volume is to the template that is laid on it by ``world`` (4×4, RAS mm); 0 where it is not, or in
        another contrast.
        """
        alike = 0.0 if world is None else likeness(cube, self.cube, world).similarity
        if alike < LIKE:
            return 0.0
        there = cube.on(self.grid.moved(world))
        return alike if self.contrast(self.relative(there.values), there.support) >= SAME else 0.0

    def contrast(self, relative: torch.Tensor, support: torch.Tensor) -> float:
        """Correlation with the template over gray and white matter, which other contrasts have the other way round."""
        where = self.matter & (support > 0.5)
        pair = torch.stack([relative[where], self.expected[where]])
        return float(torch.corrcoef(pair)[0, 1].nan_to_num()) if pair.shape[1] > 1 else 0.0

    @cached_property
    def matter(self) -> torch.Tensor:
        """1×1×D×H×W bool: gray and white matter of the template."""
        head = self.inside > 0.5
        return head & (self.cube.values > self.cube.values[head].quantile(MATTER))

    @cached_property
    def expected(self) -> torch.Tensor:
        """The template as in ``relative``."""
        return self.relative(self.cube.values)

    def relative(self, values: torch.Tensor) -> torch.Tensor:
        """1×1×D×H×W on the template's grid, each voxel relative to its surroundings, their mean and spread, so that
        bias does not count; 0 outside the template's head.
        """
        inside, weight = self.inside, self.surroundings
        values = layers.blur(values * inside, FINE) * inside
        mean = layers.blur(values, SURROUNDINGS) / weight
        variance = (layers.blur(values * values, SURROUNDINGS) / weight - mean * mean).clamp_min(0) + 1e-3
        return (values - mean) / variance.sqrt() * inside

    def measure(self, cube: Cube, world: np.ndarray) -> float | None:
        """About 1 for a head on which the template is laid by ``world``, -1 for its mirror image; None as in
        ``difference``.
        """
        difference = self.difference(cube, world)
        return None if difference is None else float((difference * self.weights).mean())


def _middle(cube: Cube) -> np.ndarray:
    """The middle of a Cube's tissue, in focus where it has one, 1×3, RAS mm."""
    return geometry.transform_points(cube.grid.voxel_to_ras, cube.middle[None])
