"""A network of feature points: found in each volume alone, the affine solved from where they are in both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .affine_transformer import preprocess
from .layers import Convolution
from .pyramid import _Pyramid


class PointTransformer(_Pyramid):
    """Feature points seen in each volume alone, and the affine that takes the fixed ones to the moving ones.

    A small U-shaped encoder gives a heat map per point at a quarter of the cube's resolution; its center of mass is
    the point (as in KeyMorph, Wang et al., arXiv 2304.09941), and a weight per point and volume says how far it is
    to be trusted. The affine is the weighted least-squares fit.
    """

    def __init__(
        self,
        volume_size: Sequence[int],
        channels: Sequence[int] = (16, 64, 128, 128),
        points: int = 64,
        n_classes: int = 1,
        class_dropout: float = 0.15,
        groups: int = 8,
        time_width: int = 128,
    ) -> None:
        super().__init__(volume_size, channels, n_classes, class_dropout, groups, time_width)
        c4, c16 = int(channels[1]), int(channels[3])
        self.heat = nn.Sequential(nn.GroupNorm(groups, c4), nn.SiLU(), Convolution(c4, points, 1))
        trusted = nn.Linear(c16, points)
        self.trust = nn.Sequential(nn.GroupNorm(groups, c16), nn.SiLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), trusted)
        # Heat maps that start sharp spread the points over the head; from a flat start all of them sit in its middle
        # and learning stalls (measured: after 4,800 pairs they still lay within 10 mm of it).
        self.sharpness = nn.Parameter(torch.tensor(8.0))
        nn.init.zeros_(trusted.weight)
        nn.init.zeros_(trusted.bias)

    def describe(
        self, volume: torch.Tensor, t: torch.Tensor, class_id: torch.Tensor | None = None, preprocessing: str = "none"
    ) -> tuple:
        """Points (B×N×3, normalized x, y, z) and log-weights (B×N) of B×1×D×H×W volumes in 0…1."""
        _, f4, f16 = self.encode(preprocess(volume, preprocessing), t, class_id)
        return centers_of_mass(self.sharpness * self.heat(f4).float()), self.trust(f16).float()

    def correspond(self, fixed: tuple, moving: tuple) -> tuple:
        """The points of both volumes, as they are numbered; how sure that is, they do not say."""
        return fixed[0], moving[0], fixed[1] + moving[1], torch.ones_like(fixed[1][:, 0])


def centers_of_mass(heat: torch.Tensor) -> torch.Tensor:
    """Centers of mass (B×N×3, normalized x, y, z) of the softmax of B×N×D×H×W heat maps."""
    mass = torch.softmax(heat.flatten(2), dim=2).view_as(heat)
    result = []
    for axis in (4, 3, 2):  # x = W, y = H, z = D
        size = heat.shape[axis]
        places = (2 * torch.arange(size, device=heat.device, dtype=heat.dtype) + 1) / size - 1
        others = tuple(a for a in (2, 3, 4) if a != axis)
        result.append((mass.sum(dim=others) * places).sum(dim=2))
    return torch.stack(result, dim=2)
