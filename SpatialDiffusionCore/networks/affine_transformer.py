"""The published 3D affine spatial transformer, key for key, and its preprocessing by modality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from .layers import _Block, _Conditioned, remaining_grid, sinusoidal_code

PUBLISHED_CHANNELS = (2, 64, 128, 256, 256, 512, 1024)

#: name → (ω, threshold) of the Gabor enhancement; "none" leaves volumes unchanged.
PREPROCESSING = {"none": None, "oct": (0.5, -0.4), "octa": (0.95, -0.5)}


def gabor_kernel(omega: float, angle: float) -> torch.Tensor:
    """5×5×5 cosine Gabor kernel (axes z, y, x = D, H, W) with φ = 0 and κ = π, normalized to sum 1.

    All in single precision, in the published order of operations: the response is compared with a threshold, so the
    last digit decides about voxels.
    """
    offsets = torch.arange(-2, 3)
    z, y, x = torch.meshgrid(offsets, offsets, offsets, indexing="ij")
    w, a, kappa = torch.tensor(float(omega)), torch.tensor(float(angle)), torch.tensor(math.pi)
    x1 = x * torch.cos(a) + y * torch.sin(a)
    y1 = -x * torch.sin(a) + y * torch.cos(a)
    spread = -(w**2) / (8 * kappa**2) * (4 * x1**2 + y1**2 + z**2)
    envelope = w**2 / (4 * math.pi * kappa**2) * torch.exp(spread)
    kernel = envelope * (torch.cos(w * x1) * torch.exp(kappa**2 / 2))
    return kernel / kernel.sum()


def preprocess(volume: torch.Tensor, name: str) -> torch.Tensor:
    """Apply a modality's preprocessing to each channel of B×C×D×H×W volumes in 0…1; the result is in 0…1."""
    if name not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {name!r}; choose one of: {', '.join(PREPROCESSING)}")
    enhancement = PREPROCESSING[name]
    if enhancement is None:
        return volume
    omega, threshold = enhancement
    channels, responses = volume.shape[1], []
    for angle in (math.pi / 2, 0.0):
        kernel = gabor_kernel(omega, angle).to(volume).repeat(channels, 1, 1, 1, 1)
        responses.append(F.conv3d(volume, kernel, padding="same", groups=channels) * 2 - 1)
    return (torch.maximum(*responses) >= threshold).to(volume.dtype)


class _Encoder(nn.Module):
    def __init__(self, channels: Sequence[int], groups: int, time_width: int, rows: int) -> None:
        super().__init__()
        self.in_conv = nn.Conv3d(channels[0], channels[1], 4, 2, 1)
        self.encoder = nn.ModuleList(
            _Block(a, b, groups, time_width, rows) for a, b in zip(channels[1:-1], channels[2:])
        )

    def forward(
        self, x: torch.Tensor, time_code: torch.Tensor, class_ids: Sequence[torch.Tensor | None]
    ) -> torch.Tensor:
        x = self.in_conv(x)
        for block, class_id in zip(self.encoder, class_ids):
            x = block(x, time_code, class_id)
        return x


class AffineTransformer(_Conditioned):
    """The published 3D affine spatial transformer.

    volume_size: (D, H, W) the network is built for; volumes of another size are resized to it. channels: 2, then
    one per stage. n_classes: number of modalities (1 = unconditional). Its state dict has the published keys.
    """

    def __init__(
        self,
        volume_size: Sequence[int],
        channels: Sequence[int] = PUBLISHED_CHANNELS,
        n_classes: int = 1,
        class_dropout: float = 0.15,
        groups: int = 32,
        time_width: int = 256,
    ) -> None:
        super().__init__(volume_size, n_classes, class_dropout)
        channels = tuple(int(c) for c in channels)
        self.time_width = time_width
        self.time_mlp = nn.Sequential(
            nn.Linear(time_width, 4 * time_width), nn.GELU(), nn.Linear(4 * time_width, time_width)
        )
        self.encoder = _Encoder(channels, groups, time_width, self.rows)
        self.class_blocks = len(self.encoder.encoder)
        kernel = remaining_grid(volume_size, len(channels) - 2)
        self.output_head = nn.Sequential(
            nn.GroupNorm(groups, channels[-1]), nn.SiLU(), nn.Conv3d(channels[-1], 12, kernel)
        )

    def fit_size(self, volume: torch.Tensor) -> torch.Tensor:
        """Resize B×1×D×H×W volumes to the size this network was built for."""
        if tuple(volume.shape[2:]) == self.volume_size:
            return volume
        return F.interpolate(volume, size=self.volume_size, mode="trilinear", align_corners=False)

    def forward(
        self,
        fixed: torch.Tensor,
        moving: torch.Tensor,
        t: torch.Tensor,
        class_id: torch.Tensor | None = None,
        preprocessing: tuple[str, str] = ("none", "none"),
    ) -> torch.Tensor:
        """fixed, moving: B×1×D×H×W in 0…1; t: B in 1…T; class_id: B or None; preprocessing: (fixed, moving)."""
        pair = self.fit_size(torch.cat([fixed, moving], dim=1))
        if preprocessing[0] == preprocessing[1]:
            pair = preprocess(pair, preprocessing[0])
        else:
            pair = torch.cat([preprocess(pair[:, i : i + 1], name) for i, name in enumerate(preprocessing)], dim=1)
        code = self.time_mlp(sinusoidal_code(t, self.time_width))
        ids = self.class_ids(class_id, pair.shape[0], pair.device, self.class_blocks)
        features = self.encoder(pair * 2 - 1, code, ids)
        residual = self.output_head(features).reshape(-1, 3, 4)
        return residual + torch.eye(3, 4, device=residual.device, dtype=residual.dtype)
