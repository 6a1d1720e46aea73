"""Smooth fields and matrices along axes, from which the artifacts are made."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch


def voxel_centers(size: int, device: str | torch.device = "cpu") -> torch.Tensor:
    """Normalized coordinates of the voxel centers along an axis of `size` voxels, size."""
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2 / size) - 1


@lru_cache(maxsize=64)
def spline_matrix(size: int, controls: int) -> torch.Tensor:
    """size×controls cubic B-spline weights; the control points span the axis from face to face."""
    position = (torch.arange(size, dtype=torch.float64) + 0.5) / size * (controls - 1)
    distance = (position[:, None] - torch.arange(-1, controls + 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    weights = torch.where(distance < 1, near, far)
    # The two control points beyond the ends continue the line through the last two, so that controls that
    # lie on an affine function give exactly that function.
    inner = weights[:, 1:-1].clone()
    inner[:, 0] += 2 * weights[:, 0]
    inner[:, 1] -= weights[:, 0]
    inner[:, -1] += 2 * weights[:, -1]
    inner[:, -2] -= weights[:, -1]
    return inner.float()


def smooth_field(controls: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Cubic B-spline of B×d×h×w×C control values on a grid of shape (D, H, W): B×D×H×W×C."""
    count, depth, height, width, channels = controls.shape
    device = controls.device
    z, y, x = (spline_matrix(size, n).to(device) for size, n in zip(shape, (depth, height, width)))
    field = torch.einsum("xl,bijlc->bijxc", x, controls)
    field = torch.einsum("yj,bijxc->biyxc", y, field)
    field = torch.matmul(z, field.reshape(count, depth, -1))
    return field.view(count, *shape, channels)


def along_axes(volume: torch.Tensor, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Apply one square matrix per sample to each axis: matrices are B×D×D, B×H×H and B×W×W."""
    count, _, depth, height, width = volume.shape
    out = torch.bmm(matrices[0], volume.view(count, depth, height * width))
    out = torch.matmul(matrices[1][:, None], out.view(count, depth, height, width))
    out = torch.bmm(out.view(count, depth * height, width), matrices[2].transpose(1, 2))
    return out.view(volume.shape)


def renormalize(volume: torch.Tensor) -> torch.Tensor:
    """Scale every volume so that its smallest and largest value become 0 and 1 (a constant one stays)."""
    low, high = torch.aminmax(volume.view(len(volume), -1), dim=1)
    span = high - low
    span = torch.where(span > 1e-6, span, torch.ones_like(span))
    shape = (-1, 1, 1, 1, 1)
    return (volume - low.view(shape)) / span.view(shape)
