"""What voxels are compared by where intensities cannot be: self-similarity, blind to contrast."""

from __future__ import annotations

import torch

from ..networks.layers import blur


def self_similarity(volume: torch.Tensor, sigma: float = 0.8) -> torch.Tensor:
    """Six-channel self-similarity descriptor that does not depend on contrast (MIND; Heinrich et al., MedIA 16:1423,
    2012): exp(−D_k/V), D_k the patch distance to the k-th neighbor, V its mean over the neighbors."""
    result = volume.new_empty(volume.shape[0], 6, *volume.shape[2:])
    for index, axis in enumerate((2, 3, 4)):
        last = volume.shape[axis] - 1
        squared = torch.zeros_like(volume)
        torch.sub(volume.narrow(axis, 1, last), volume.narrow(axis, 0, last), out=squared.narrow(axis, 0, last))
        # The patch distance of each voxel to its next neighbor along the axis is that of the neighbor to it.
        forward = blur(squared.square_(), sigma)
        backward = result.narrow(1, 2 * index, 1)
        backward.narrow(axis, 0, 1).copy_(forward.narrow(axis, 0, 1))
        backward.narrow(axis, 1, last).copy_(forward.narrow(axis, 0, last))
        result.narrow(1, 2 * index + 1, 1).copy_(forward)
    variance = result.mean(dim=1)
    typical = float(variance.mean())
    scale = variance.clamp_(min=1e-4 * typical + 1e-8, max=1e3 * typical + 1e-6).reciprocal_().neg_()
    # The most similar neighbor gets 1, so that the descriptor does not fade in noise.
    smallest = result.amin(dim=1)
    for channel in result.unbind(1):  # one at a time stays in the cache
        channel.sub_(smallest).mul_(scale).exp_()
    return result
