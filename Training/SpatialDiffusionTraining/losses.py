"""How wrong a predicted affine is.

Affines are B×3×4 in normalized coordinates; tissue is described by the mean (B×3) and covariance (B×3×3) of its
voxels' normalized coordinates in the fixed volume, which is all that an average squared displacement needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from SpatialDiffusionCore.method.diffusion import invert
from SpatialDiffusionCore.method.schedule import Schedule


def frobenius(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The published loss per sample: Frobenius norm of the difference, B."""
    return torch.linalg.matrix_norm(predicted.float() - target)


def half_edges(shape: Sequence[int], spacing: float | Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Half the edges of the grid in mm in the order x, y, z: what a normalized unit is long, 3.

    spacing: mm, one number or three along (D, H, W).
    """
    edges = np.array(shape) * np.asarray(spacing, float)
    return torch.tensor(edges[::-1] / 2, dtype=torch.float32, device=like.device)


def displacement(
    predicted: torch.Tensor, target: torch.Tensor, mean: torch.Tensor, covariance: torch.Tensor, half: torch.Tensor
) -> torch.Tensor:
    """RMS distance in mm, over the tissue, between where both affines send its voxels, B.

    geometry.displacement_rms for batches with gradients, which need the root's floor.
    """
    error = (predicted.float() - target) * half[:, None]
    offset = torch.einsum("bij,bj->bi", error[:, :, :3], mean) + error[:, :, 3]
    spread = (error[:, :, :3] @ covariance * error[:, :, :3]).sum((1, 2))
    # A hundredth of a millimeter keeps the root's slope finite.
    return (offset.square().sum(1) + spread + 1e-4).sqrt()


def expected_displacement(
    schedule: Schedule,
    t: torch.Tensor,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    half: torch.Tensor,
    spacing: float | Sequence[float],
) -> torch.Tensor:
    """RMS displacement in mm that the diffusion of timesteps t gives the tissue, to first order, B.

    The 3×3 part is drawn in normalized coordinates, so each of its rows displaces by its own axis's half edge.
    """
    linear = torch.as_tensor(schedule.total_transform, dtype=torch.float32, device=t.device)[t - 1]
    shift = torch.as_tensor(schedule.total_translation, dtype=torch.float32, device=t.device)[t - 1]
    radius = (mean.square() + torch.diagonal(covariance, dim1=1, dim2=2)).sum(1) * half.square().mean()
    voxel = float(np.square(np.broadcast_to(spacing, 3)).sum())
    return (linear.square() * radius + shift.square() * voxel).sqrt()


def physical(
    predicted: torch.Tensor,
    target: torch.Tensor,
    t: torch.Tensor,
    schedule: Schedule,
    mean: torch.Tensor,
    covariance: torch.Tensor,
    half: torch.Tensor,
    spacing: float | Sequence[float],
    floor: float = 0.0,
) -> torch.Tensor:
    """RMS displacement error over the tissue in units of the timestep's expected displacement, B.

    floor (mm) is added to the unit in quadrature, so that the first timesteps, whose displacements are a small
    part of a voxel, do not outweigh all others.
    """
    error = displacement(predicted, target, mean, covariance, half)
    unit = expected_displacement(schedule, t, mean, covariance, half, spacing)
    return error / (unit.square() + floor**2).sqrt()


def moved_moments(
    mean: torch.Tensor, covariance: torch.Tensor, affine: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the tissue in a volume that samples its source at `affine` (output → source)."""
    back = invert(affine)
    shifted = torch.einsum("bij,bj->bi", back[:, :, :3], mean) + back[:, :, 3]
    return shifted, back[:, :, :3] @ covariance @ back[:, :, :3].transpose(1, 2)
