"""Corrupt batches of volumes on their device, without a Python loop over the samples.

Volumes are B×1×D×H×W float tensors in 0..1. Lengths are fractions of the cube's edge, so that one set of
parameters serves every cube size; where the published recipe gives voxels, they are fractions of its 256.

Every random number comes from a CPU generator, as small tensors with one row per sample (`draw`), and the
work on voxels (`apply`, `displace`) is a pure function of these rows. So a batch is the same on every device,
a run resumes exactly, and a process that handles a part of a global batch takes just its rows.

Whatever moves voxels (pose, diffusion affine, deformation, motion, stretch) only describes a sampling grid:
`warp` composes it all and reads every volume once.
"""

from __future__ import annotations

from .corruption import ARTIFACTS, FILTERS, WARPS, Corruption, describe, take
from .draws import Draw, integers, normal, rotations, turn, uniform
from .fields import along_axes, renormalize, smooth_field, spline_matrix, voxel_centers
from .filters import (
    Bias,
    Blur,
    Contrast,
    Doubling,
    FieldOfView,
    Intensity,
    Lesion,
    Noise,
    Shadow,
    Strip,
    ThickSlices,
)
from .warps import Deformation, Motion, Pose, Stretch, warp

__all__ = [
    "ARTIFACTS",
    "FILTERS",
    "WARPS",
    "Bias",
    "Blur",
    "Contrast",
    "Corruption",
    "Deformation",
    "Doubling",
    "Draw",
    "FieldOfView",
    "Intensity",
    "Lesion",
    "Motion",
    "Noise",
    "Pose",
    "Shadow",
    "Stretch",
    "Strip",
    "ThickSlices",
    "along_axes",
    "describe",
    "integers",
    "normal",
    "renormalize",
    "rotations",
    "smooth_field",
    "spline_matrix",
    "take",
    "turn",
    "uniform",
    "voxel_centers",
    "warp",
]
