"""Two volumes under registration, and how alike they are under transforms."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..spatial import geometry
from . import similarity

#: Largest logarithmic strain of a candidate for refinement, which may find more.
STRAIN = 0.2


@dataclass
class Pair:
    """Two Cubes, and how alike they are under transforms, each looked at once."""

    moving: object
    fixed: object
    known: dict = field(default_factory=dict)

    def over(self, world: np.ndarray, moving: bool = False) -> tuple:
        """(similarity, share of the tissue inside the other's field of view) over the fixed, or over the moving tissue."""
        key = np.asarray(world, float).tobytes(), moving
        if key not in self.known:
            self.known[key] = (
                similarity.similarity(self.fixed, self.moving, geometry.inverse(world))
                if moving
                else similarity.similarity(self.moving, self.fixed, world)
            )
        return self.known[key]

    def alike(self, world: np.ndarray) -> float:
        """The similarity over the tissue of the volume that finds more of itself in the other one: a brain without a skull is
        all there in a head, but not the head in the brain."""
        return max(self.over(world)[0], self.over(world, moving=True)[0])

    @property
    def tissue(self) -> tuple:
        """Mean (3, RAS mm) and covariance (3×3) of the fixed tissue."""
        return self.fixed.prepared.tissue_center, self.fixed.prepared.tissue_covariance

    def plausible(self, worlds) -> list:
        """Candidates without more strain than ``STRAIN``: squeezed, a volume is alike to what is left of the other."""
        return [geometry.limit_strain(world, STRAIN, self.fixed.prepared.tissue_center) for world in worlds]

    # From RAS to what others work in, and back.

    def to_world(self, matrix) -> np.ndarray:
        """A transform between cube frames (4×4)."""
        return self.moving.frame @ np.asarray(matrix, float) @ np.linalg.inv(self.fixed.frame)

    def to_frames(self, world) -> np.ndarray:
        """The opposite."""
        return np.linalg.inv(self.moving.frame) @ world @ self.fixed.frame

    def from_theta(self, theta) -> np.ndarray:
        """A transform between the cubes' normalized coordinates (3×4)."""
        return geometry.theta_to_world(
            theta.detach().cpu().double().numpy(), self.fixed.grid.normalized_to_ras, self.moving.grid.normalized_to_ras
        )

    def to_theta(self, world):
        """The opposite, float32 on the volumes' device."""
        import torch

        theta = geometry.world_to_theta(world, self.fixed.grid.normalized_to_ras, self.moving.grid.normalized_to_ras)
        return torch.as_tensor(theta, dtype=torch.float32, device=self.moving.values.device)
