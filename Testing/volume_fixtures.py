"""Small volumes that several tests are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def blob(center: Sequence[float] = (11, 12, 10), shape: Sequence[int] = (24, 26, 22)) -> np.ndarray:
    """A smooth blob about ``center`` (voxels) with texture, float32."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return (np.exp(-((grid - center) ** 2).sum(-1) / 40) * 200 + 5 * np.sin(grid).sum(-1)).clip(0).astype(np.float32)
