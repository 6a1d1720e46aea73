"""What the project's own networks share: an encoder of one volume, and the affine solved from corresponding places."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .layers import Convolution, _Block, _Conditioned, sinusoidal_code


def solve_affine(
    source: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, ridge: float | Sequence[float] = 1e-4
) -> torch.Tensor:
    """θ (B×3×4) that maps B×N×3 ``source`` points to ``target`` with B×N weights, by weighted least squares.

    The ridge, one number or one per axis (3), pulls the 3×3 part to the identity where the points do not determine it
    (all in one plane, say).
    """
    weights = weights / weights.sum(dim=1, keepdim=True)
    mean_source = (weights[..., None] * source).sum(1, keepdim=True)
    mean_target = (weights[..., None] * target).sum(1, keepdim=True)
    centered, aimed = source - mean_source, target - mean_target
    weighted = (weights[..., None] * centered).transpose(1, 2)
    covariance = weighted @ centered + torch.diag(torch.as_tensor(ridge, device=source.device).float().expand(3))
    change = torch.linalg.solve(covariance, weighted @ (aimed - centered)).transpose(1, 2)
    linear = torch.eye(3, device=source.device) + change
    translation = mean_target.transpose(1, 2) - linear @ mean_source.transpose(1, 2)
    return torch.cat([linear, translation], dim=2)


class _Pyramid(_Conditioned):
    """A small U-shaped encoder that sees one volume and gives features on a quarter of the cube's resolution.

    channels: of the grids at 1/2, 1/4, 1/8 and 1/16 of the cube's size; the other arguments as in AffineTransformer.
    Volumes of any size will do; volume_size is what it is trained on.
    """

    #: Blocks to which a class is told.
    class_blocks = 4

    def __init__(
        self,
        volume_size: Sequence[int],
        channels: Sequence[int],
        n_classes: int,
        class_dropout: float,
        groups: int,
        time_width: int,
    ) -> None:
        super().__init__(volume_size, n_classes, class_dropout)
        c2, c4, c8, c16 = (int(c) for c in channels)
        self.time_width = time_width
        self.time_mlp = nn.Sequential(
            nn.Linear(time_width, 2 * time_width), nn.GELU(), nn.Linear(2 * time_width, time_width)
        )
        common = (groups, time_width, self.rows)
        self.stem = Convolution(1, c2, 4, 2, 1)
        self.down4 = _Block(c2, c4, *common)
        self.down8 = _Block(c4, c8, *common)
        self.down16 = _Block(c8, c16, *common)
        self.up8 = Convolution(c16, c8, 1)
        self.mix8 = _Block(c8, c8, *common, stride=1)
        self.up4 = Convolution(c8, c4, 1)
        self.mix4 = nn.Sequential(nn.GroupNorm(groups, c4), nn.SiLU(), Convolution(c4, c4, 3, 1, 1))

    def encode(
        self, volume: torch.Tensor, t: torch.Tensor, class_id: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features at 1/2, at 1/4 and at 1/16 of the size of B×1×D×H×W preprocessed volumes in 0…1."""
        x = volume * 2 - 1
        code = self.time_mlp(sinusoidal_code(t, self.time_width))
        ids = self.class_ids(class_id, x.shape[0], x.device, self.class_blocks)
        f2 = self.stem(x)
        f4 = self.down4(f2, code, ids[0])
        f8 = self.down8(f4, code, ids[1])
        f16 = self.down16(f8, code, ids[2])
        up = F.interpolate(self.up8(f16), size=f8.shape[2:], mode="trilinear", align_corners=False)
        f8 = self.mix8(f8 + up, code, ids[3])
        up = F.interpolate(self.up4(f8), size=f4.shape[2:], mode="trilinear", align_corners=False)
        f4 = f4 + up
        return f2, f4 + self.mix4(f4), f16

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        t: torch.Tensor,
        class_id: torch.Tensor | None = None,
        preprocessing: tuple[str, str] = ("none", "none"),
    ) -> Any:
        """fixed, moving: B×1×D×H×W in 0…1; t: B in 1…T; class_id: B or None; preprocessing: (fixed, moving)."""
        described = self.describe_both(fixed, moving, t, class_id, preprocessing)
        # The solve needs single precision whatever the convolutions run in.
        with torch.autocast(fixed.device.type, enabled=False):
            source, target, trust, _ = self.correspond(*described)
            return solve_affine(source, target, torch.softmax(trust, dim=1))

    def describe(
        self, volume: torch.Tensor, t: torch.Tensor, class_id: torch.Tensor | None = None, preprocessing: str = "none"
    ) -> tuple:
        """What ``correspond`` needs to know of B×1×D×H×W volumes in 0…1: tensors that begin with B."""
        raise NotImplementedError

    def correspond(self, fixed: tuple, moving: tuple) -> tuple:
        """(places in the fixed volumes, places in the moving ones, log-weights, sureness) of two descriptions of B
        volumes.

        B×N×3 normalized x, y, z, twice, B×N, and B: how sure it is that they show the same in the same orientation.
        """
        raise NotImplementedError

    def describe_both(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        t: torch.Tensor,
        class_id: torch.Tensor | None,
        preprocessing: tuple[str, str],
        **options: Any,
    ) -> tuple[tuple, ...]:
        """The descriptions of the fixed and of the moving volumes."""
        describe: Callable[..., tuple] = functools.partial(self.describe, **options)
        if len(fixed) > 1 and fixed.stride(0) == 0 and not self.training and bool((t == t[0]).all()):
            # One volume expanded to a batch (several poses of the moving one): seen once.
            one = None if class_id is None else class_id[:1]
            first = describe(fixed[:1], t[:1], one, preprocessing[0])
            second = describe(moving, t, class_id, preprocessing[1])
            return tuple(a.expand_as(b) for a, b in zip(first, second)), second
        if preprocessing[0] == preprocessing[1]:
            twice = None if class_id is None else torch.cat([class_id, class_id])
            found = describe(torch.cat([fixed, moving]), torch.cat([t, t]), twice, preprocessing[0])
            return tuple(zip(*(part.chunk(2) for part in found)))
        return tuple(describe(v, t, class_id, p) for v, p in zip((fixed, moving), preprocessing))
