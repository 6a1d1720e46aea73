"""Series whose motion is known: one real frame, moved by cubic splines on a finer grid, with noise and drift.

The engine itself interpolates linearly, so its errors are not hidden by the making.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.volume import Volume


class MovingSeries:
    """frames: Volumes, the first at rest; truth: N×4×4, first frame → frame k points, RAS mm; points: of the tissue."""

    def __init__(self, volume: Volume, count: int, *, mm=3.0, degrees=3.0, noise=0.02, drift=0.03, seed=0, order=3):
        random = np.random.default_rng(seed)
        values = np.asarray(volume.data, float)
        tissue = ndimage.gaussian_filter(values, 1) > 0.2 * np.percentile(values, 99.5)
        to_ras, level = volume.voxel_to_ras, values[tissue].mean()
        inside = geometry.transform_points(to_ras, np.argwhere(tissue))
        self.points, center = inside[::7], inside.mean(0)
        fine = ndimage.zoom(values, 2, order=order, mode="mirror", grid_mode=True)
        fine = ndimage.spline_filter(fine, order)
        to_fine = geometry.from_parts(np.diag([2.0, 2.0, 2.0]), [0.5, 0.5, 0.5])
        self.truth, self.frames = [np.eye(4)], []
        for _ in range(count - 1):
            axis, shift = random.normal(size=(2, 3))
            turn = geometry.rotation_about(axis, np.radians(random.uniform(0, degrees)))
            shift *= random.uniform(0, mm) / np.linalg.norm(shift)
            self.truth.append(geometry.about(turn, center, shift))
        for index, matrix in enumerate(self.truth):
            moved = values
            if index:
                way = to_fine @ np.linalg.inv(to_ras) @ np.linalg.inv(matrix) @ to_ras
                moved = ndimage.affine_transform(
                    fine, way[:3, :3], way[:3, 3], values.shape, order=order, prefilter=False
                )
                moved = moved * (1 + random.uniform(-drift, drift))
            moved = np.round(moved + noise * level * random.normal(size=moved.shape))
            self.frames.append(Volume(moved.astype(np.float32), to_ras, f"frame {index}"))
        self.truth = np.array(self.truth)

    def errors(self, matrices: np.ndarray) -> np.ndarray:
        """mm by which frame → first frame matrices miss, (N − 1) × points."""
        both = zip(matrices[1:], self.truth[1:])
        return np.array(
            [np.linalg.norm(geometry.transform_points(m @ t, self.points) - self.points, axis=1) for m, t in both]
        )
