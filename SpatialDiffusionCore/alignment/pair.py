"""Two volumes under registration, and how alike they are under transforms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from ..spatial import geometry
from ..spatial.cube import Cube
from . import similarity

#: Largest logarithmic strain of a candidate for refinement, which may find more.
STRAIN = 0.2

#: Least overlap by which a similarity is divided: smaller ones are not made up for.
LEAST_OVERLAP = 0.25


@dataclass
class Pair:
    """Two Cubes, and how alike they are under transforms (fixed → moving, 4×4, RAS mm), each looked at once."""

    moving: Cube
    fixed: Cube
    known: dict[tuple, similarity.Likeness] = field(default_factory=dict)

    def over(self, world: np.ndarray, moving: bool = False) -> similarity.Likeness:
        """How alike they are over the fixed, or over the moving tissue."""
        key = np.asarray(world, float).tobytes(), moving
        if key not in self.known:
            self.known[key] = (
                similarity.likeness(self.fixed, self.moving, geometry.inverse(world))
                if moving
                else similarity.likeness(self.moving, self.fixed, world)
            )
        return self.known[key]

    def alike(self, world: np.ndarray) -> float:
        """The similarity over the tissue of the volume that finds more of itself in the other one: a brain without a
        skull is all there in a head, but not the head in the brain.
        """
        return max(self.over(world).similarity, self.over(world, moving=True).similarity)

    def rank(self, world: np.ndarray) -> float:
        """What candidates are compared by: the similarity, over the tissue of the volume for which it is larger, in
        which tissue that has nothing opposite counts less than tissue that is unlike.
        """
        both = (self.over(world), self.over(world, moving=True))
        return max(one.similarity / max(one.overlap, LEAST_OVERLAP) ** 0.5 for one in both)

    @property
    def tissue(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (3, RAS mm) and covariance (3×3) of the fixed tissue."""
        return self.fixed.prepared.tissue_center, self.fixed.prepared.tissue_covariance

    @property
    def size(self) -> float:
        """Twice the RMS radius of the fixed tissue, mm."""
        return self.fixed.prepared.size

    def apart(self, one: np.ndarray, other: np.ndarray) -> float:
        """RMS distance over the fixed tissue between two transforms, as a share of the size."""
        return geometry.displacement_rms(one, other, *self.tissue) / self.size

    def plausible(self, worlds: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Candidates without more strain than ``STRAIN``: squeezed, a volume is alike to what is left of the other.
        Those that mirror are left out: many organs are more like their own mirror image than like another one.
        """
        worlds = [world for world in worlds if np.linalg.det(world[:3, :3]) > 0]
        return [geometry.limit_strain(world, STRAIN, self.fixed.prepared.tissue_center) for world in worlds]

    # From RAS to what others work in, and back.

    def to_world(self, matrix: np.ndarray) -> np.ndarray:
        """A transform between cube frames (4×4)."""
        return self.moving.frame @ np.asarray(matrix, float) @ np.linalg.inv(self.fixed.frame)

    def from_theta(self, theta: torch.Tensor) -> np.ndarray:
        """A transform between the cubes' normalized coordinates (3×4)."""
        return geometry.theta_to_world(
            theta.detach().cpu().double().numpy(), self.fixed.grid.normalized_to_ras, self.moving.grid.normalized_to_ras
        )

    def to_theta(self, world: np.ndarray) -> torch.Tensor:
        """The opposite, float32 on the volumes' device."""
        theta = geometry.world_to_theta(world, self.fixed.grid.normalized_to_ras, self.moving.grid.normalized_to_ras)
        return torch.as_tensor(theta, dtype=torch.float32, device=self.moving.values.device)
