"""A volume as the network and the refinement see it: 0…1 on a cube around its tissue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from . import geometry
from .sampling import Prepared, sample_tensor, sample_with_support
from .volume import Grid

#: A voxel is in focus where the network is at least this sure: a rim of skull does no harm, a lost lobe does.
SURE = 0.2


@dataclass(frozen=True)
class Cube:
    """A prepared volume on a grid. values, support: 1×1×D×H×W float32, intensities and field of view in 0…1.

    focus: (1×1×d×h×w in 0…1 and its Grid) where its tissue counts (focus.py); None: everywhere.
    """

    prepared: Prepared
    grid: Grid
    values: torch.Tensor
    support: torch.Tensor
    focus: tuple | None = None

    @property
    def spacing(self) -> np.ndarray:
        """mm between voxels along the cube's axes."""
        return geometry.spacing(self.grid.voxel_to_ras)

    @property
    def frame(self) -> np.ndarray:
        """Cube frame (mm along the cube's axes i, j, k from its center) → RAS, 4×4."""
        center = (np.array(self.grid.shape) - 1) / 2
        return self.grid.voxel_to_ras @ geometry.from_parts(np.diag(1 / self.spacing), center)

    @cached_property
    def tissue(self) -> torch.Tensor:
        """1×1×D×H×W: 1 where there is tissue (above Otsu's threshold, inside the field of view, mask and focus)."""
        low, high = self.prepared.window
        threshold = (self.prepared.threshold - low) / (high - low)
        inside = (self.values > threshold) & (self.support > 0.5)
        if self.focus is not None:
            inside &= sample_tensor(self.focus[0], self.focus[1], self.grid) > SURE
        return inside.to(self.values.dtype)

    @property
    def middle(self) -> np.ndarray:
        """The middle of the tissue, voxels of the grid (3); the grid's own where there is none."""
        inside = self.tissue[0, 0].nonzero().cpu().double()
        return inside.mean(0).numpy() if len(inside) else (np.array(self.grid.shape) - 1) / 2

    def on(self, grid: Grid) -> Cube:
        """The same volume sampled on another grid."""
        return on_grid(self.prepared, grid, self.values.device, self.focus)


def on_grid(prepared: Prepared, grid: Grid, device: torch.device | str, focus: tuple | None = None) -> Cube:
    """Sample a prepared volume on a grid."""
    values, support = sample_with_support(prepared, grid, device)
    return Cube(prepared, grid, values, support, focus)


def bounds(inside: torch.Tensor, margin: int) -> tuple[list[int], list[int]]:
    """First voxel and last + 1 (3 each) of the box around what is true in D×H×W, ``margin`` wider, within the volume.

    The whole volume where nothing is true.
    """
    along = [inside.any(dim=2 if axis != 2 else 0).any(dim=1 if axis == 0 else 0) for axis in range(3)]
    lines = np.split(torch.cat(along).cpu().numpy(), np.cumsum(inside.shape)[:-1])  # one wait for the device
    first, last = [], []
    for line in lines:
        found = line.nonzero()[0]
        low, high = (found[0], found[-1]) if len(found) else (0, len(line) - 1)
        first.append(max(0, int(low) - margin))
        last.append(min(len(line), int(high) + 1 + margin))
    return first, last
