"""The small network that says where in a volume to look, in any orientation: what two people have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .layers import Convolution


class FocusNetwork(nn.Module):
    """A U-shaped network; blocks of 4³ voxels go in as channels, which is several times faster than a finer first grid.

    channels: of the grids at 1/4, 1/8 and 1/16 of the cube's size. The cube's size must be divisible by 4.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 64), groups: int = 4) -> None:
        super().__init__()
        self.channels, self.groups = [int(c) for c in channels], int(groups)
        c4, c8, c16 = self.channels

        def layer(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(Convolution(inner, outer, 3, stride, 1), nn.GroupNorm(groups, outer), nn.SiLU())

        self.at4 = nn.Sequential(layer(8, c4), layer(c4, c4))
        self.at8 = nn.Sequential(layer(c4, c8, 2), layer(c8, c8))
        self.at16 = nn.Sequential(layer(c8, c16, 2), layer(c16, c16))
        self.up8, self.mix8 = Convolution(c16, c8, 1), layer(c8, c8)
        self.up4, self.mix4 = Convolution(c8, c4, 1), layer(c4, c4)
        self.out = Convolution(c4, 8, 1)

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        """Log-odds (B×1 at half the size) of B×1×D×H×W volumes in 0…1."""

        def raised(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)

        x4 = self.at4(_gathered(half(volume) * 2 - 1))
        x8 = self.at8(x4)
        x8 = self.mix8(x8 + raised(self.up8(self.at16(x8)), x8))
        x4 = self.mix4(x4 + raised(self.up4(x8), x4))
        return _scattered(self.out(x4))


def _gathered(x: torch.Tensor) -> torch.Tensor:
    """B×1×D×H×W → B×8×D/2×H/2×W/2: blocks of 2³ voxels as channels."""
    b, _, d, h, w = x.shape
    return x.view(b, d // 2, 2, h // 2, 2, w // 2, 2).permute(0, 2, 4, 6, 1, 3, 5).reshape(b, 8, d // 2, h // 2, w // 2)


def _scattered(x: torch.Tensor) -> torch.Tensor:
    """The inverse of ``_gathered``."""
    b, _, d, h, w = x.shape
    return x.view(b, 2, 2, 2, d, h, w).permute(0, 4, 1, 5, 2, 6, 3).reshape(b, 1, 2 * d, 2 * h, 2 * w)


def half(volume: torch.Tensor) -> torch.Tensor:
    """B×C×D×H×W volumes at half their size, averaged."""
    return F.avg_pool3d(volume, 2)
