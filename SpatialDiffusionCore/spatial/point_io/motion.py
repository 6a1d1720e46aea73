"""A transform of points, normals and vectors that are in RAS or in LPS."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .. import geometry

#: How far the axes of a similarity, as transform files round it, may be off.
_SIMILAR = 1e-5


@dataclass(frozen=True)
class Motion:
    """matrix: 4×4, RAS → RAS, mm."""

    matrix: np.ndarray

    def _in(self, frame: str) -> np.ndarray:
        return self.matrix if frame == "RAS" else geometry.LPS_RAS @ self.matrix @ geometry.LPS_RAS

    def points(self, points: np.ndarray, frame: str) -> np.ndarray:
        """N×3 points, moved."""
        return geometry.transform_points(self._in(frame), points)

    def normals(self, normals: np.ndarray, frame: str) -> np.ndarray:
        """N×3 normals of surfaces, which go with the inverse transposed; of length 1, or 0 where they were."""
        moved = np.asarray(normals, float) @ np.linalg.inv(self._in(frame)[:3, :3])
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        return np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)

    def vectors(self, vectors: np.ndarray, frame: str) -> np.ndarray:
        """N×3 differences of points."""
        return np.asarray(vectors, float) @ self._in(frame)[:3, :3].T

    def rotation(self, frame: str) -> np.ndarray:
        """The 3×3 rotation that is nearest to the linear part."""
        u, _, vt = np.linalg.svd(self._in(frame)[:3, :3])
        return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt

    def scale(self) -> float | None:
        """By how much all lengths grow, where a rotation and one factor is all that the linear part is; else None."""
        linear = self.matrix[:3, :3]
        factor = float(np.cbrt(np.linalg.det(linear)))
        if factor <= 0 or np.abs(linear.T @ linear / factor**2 - np.eye(3)).max() > _SIMILAR:
            return None
        return factor


def frame_in(text: str) -> str:
    """RAS or LPS, by ``SPACE=…`` in a header; LPS where it says nothing."""
    found = re.search(r"SPACE=(RAS|LPS)", text)
    return found[1] if found else "LPS"


def damaged(path, what: str) -> InputError:
    """The sentence about a file whose points cannot be read."""
    return InputError(f"'{path}' is damaged or no {what}; write it again.")
