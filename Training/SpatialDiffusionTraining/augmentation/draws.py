"""Random numbers of the artifacts: small CPU tensors from a generator, one row per sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

#: Drawn numbers of an artifact: name → tensor whose first axis is the sample.
Draw = dict[str, torch.Tensor]  # name -> tensor whose first axis is the sample


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> torch.Tensor:
    """Uniform numbers in [low, high) of the given shape from the CPU generator."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def normal(generator: torch.Generator, *shape: int, clip: float = 2.0) -> torch.Tensor:
    """Standard normal numbers clipped at ±clip."""
    return torch.randn(shape, generator=generator).clamp_(-clip, clip)


def integers(generator: torch.Generator, low: int, high: int, *shape: int) -> torch.Tensor:
    """Whole numbers in low..high, both included."""
    return torch.randint(low, high + 1, shape, generator=generator)


def rotations(generator: torch.Generator, count: int, max_degrees: float) -> torch.Tensor:
    """count×3×3 rotations about random axes, the angle uniform in ±max_degrees."""
    axis = F.normalize(torch.randn(count, 3, generator=generator), dim=1)
    angle = uniform(generator, -1, 1, count) * math.radians(max_degrees)
    return turn(axis, angle)


def turn(axis: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """B×3×3 rotations by B angles (radians) about B×3 unit axes."""
    count = len(axis)
    x, y, z = axis.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(count, 3, 3)
    sine, cosine = angle.sin().view(-1, 1, 1), angle.cos().view(-1, 1, 1)
    return torch.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def quaternion_rotation(q: torch.Tensor) -> torch.Tensor:
    """B×3×3 rotations of B×4 unit quaternions (w, x, y, z)."""
    w, x, y, z = q.unbind(1)
    rows = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - z * w),
        2 * (x * z + y * w),
        2 * (x * y + z * w),
        1 - 2 * (x * x + z * z),
        2 * (y * z - x * w),
        2 * (x * z - y * w),
        2 * (y * z + x * w),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, 1).view(-1, 3, 3)
