"""Layers that the networks share, the codes of timestep and class, and Gaussian blur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import nn

from ..heartbeat import beat


def sinusoidal_code(t: torch.Tensor, width: int) -> torch.Tensor:
    """Sines then cosines of t at width/2 frequencies from 1 down to 1/10000, B×width."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) / (half - 1) * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def remaining_grid(size: Sequence[int], blocks: int = 5) -> tuple:
    """Size of the feature grid after the first convolution and ``blocks`` halving blocks."""
    grid = [n // 2 for n in size]
    for _ in range(blocks):
        grid = [(n - 1) // 2 + 1 for n in grid]
    return tuple(grid)


class Convolution(nn.Conv3d):
    """nn.Conv3d that is as fast for a small volume alone as for two: there PyTorch leaves oneDNN on a CPU, and takes
    four times as long for each.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beat()
        alone = len(x) == 1 and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not alone or torch.is_grad_enabled() or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        assert not isinstance(self.padding, str)  # "same" and the like are used nowhere
        return torch.mkldnn_convolution(
            x.contiguous(), self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class _Block(nn.Module):
    """Pre-activation residual block that adds the time and class codes and halves the grid (stride 2) or keeps it."""

    def __init__(self, inner: int, outer: int, groups: int, time_width: int, rows: int, stride: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.GroupNorm(groups, inner), nn.SiLU(), Convolution(inner, outer, 3, stride, 1))
        self.conv2 = nn.Sequential(nn.GroupNorm(groups, outer), nn.SiLU(), Convolution(outer, outer, 3, 1, 1))
        pool = nn.MaxPool3d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.res_conv = nn.Sequential(pool, Convolution(inner, outer, 1)) if inner != outer else pool
        self.time_embed = nn.Sequential(nn.GELU(), nn.Linear(time_width, outer))
        if rows:
            self.class_embedding = nn.Embedding(rows, outer)

    def forward(self, x: torch.Tensor, time_code: torch.Tensor, class_id: torch.Tensor | None) -> torch.Tensor:
        code = self.time_embed(time_code)
        if class_id is not None:
            code = code + self.class_embedding(class_id)
        h = self.conv1(x) + code[:, :, None, None, None]
        return self.conv2(h) + self.res_conv(x)


class _Conditioned(nn.Module):
    """What both networks share: the size they see, the class ids and their dropout."""

    def __init__(self, volume_size: Sequence[int], n_classes: int, class_dropout: float) -> None:
        super().__init__()
        self.volume_size = tuple(int(n) for n in volume_size)
        self.n_classes, self.class_dropout = int(n_classes), float(class_dropout)
        # With class dropout row 0 means "no modality"; an unconditional network has no rows at all.
        self.rows = 0 if self.n_classes == 1 else self.n_classes + (1 if self.class_dropout > 0 else 0)

    def class_ids(self, class_id: torch.Tensor | None, batch: int, device: torch.device | str, blocks: int) -> list:
        """The class ids each block uses: as given, or 0 with probability class_dropout while training.

        class_id: B, or B×blocks where the caller has drawn for each block what is hidden.
        """
        if not self.rows:
            return [None] * blocks
        if class_id is None:
            class_id = torch.zeros(batch, dtype=torch.long, device=device)
        class_id = class_id.to(device=device, dtype=torch.long)
        if class_id.dim() == 2:
            return list(class_id.unbind(1))
        if not self.training or self.class_dropout == 0:
            return [class_id] * blocks
        kept = torch.rand(blocks, batch, device=device) >= self.class_dropout
        return [class_id * keep for keep in kept]


def reach(sigma: float) -> int:
    """How many voxels away ``blur`` still sees."""
    return max(1, int(2.5 * sigma + 0.5))


def blur(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of B×C×D×H×W, sigma in voxels; near an edge only what is inside counts.

    One product with a small matrix per axis: faster than a convolution or shifted sums, and three kernels on a GPU.
    """
    if sigma <= 0:
        return volume
    along_d, along_h, along_w = (_blurring(size, sigma, volume.device, volume.dtype) for size in volume.shape[2:])
    volume = along_h @ (volume @ along_w.T)
    return (along_d @ volume.flatten(3)).view(volume.shape)


@lru_cache(maxsize=64)
def _blurring(size: int, sigma: float, device: torch.device | str, dtype: torch.dtype) -> torch.Tensor:
    """size×size weights of a blurred voxel (row) over the voxels of its line."""
    place = torch.arange(size, dtype=torch.float64)
    apart = (place[:, None] - place).abs()
    weights = torch.exp(-0.5 * (apart / sigma) ** 2) * (apart <= reach(sigma))
    return (weights / weights.sum(1, keepdim=True)).to(device, dtype)
