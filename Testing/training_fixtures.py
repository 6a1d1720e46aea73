"""Scans and settings that the training tests share."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def real_scans():
    """Four brains and heads of the development data, or the two bundled brains where there is none."""
    folder = Path(os.environ.get("SPATIAL_DIFFUSION_DATA", ROOT.parent / "shared" / "data"))
    for candidate in (folder, folder / "data"):
        if (candidate / "t1").is_dir():
            return [sorted((candidate / "t1").glob(f"{kind}*"))[i] for kind in ("ds002748", "ixi") for i in (0, 1)]
    return sorted((ROOT / "SpatialDiffusionCore" / "demo").glob("*.nii.gz"))


def phantom(seed=0, shape=(40, 48, 44), spacing=(5.0, 4.0, 4.5)):
    """A head-like NIfTI image: nested ellipsoids with a few spots, not symmetric, 8 bit."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    data = np.zeros(shape)
    for radius, value in (((0.7, 0.8, 0.75), 90), ((0.6, 0.7, 0.65), 160), ((0.25, 0.4, 0.2), 60)):
        data[((grid / radius) ** 2).sum(-1) < 1] = value
    for _ in range(8):
        center, radius = random.uniform(-0.45, 0.45, 3), random.uniform(0.08, 0.2)
        data[((grid - center) ** 2).sum(-1) < radius**2] = random.uniform(40, 250)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.array(shape) * spacing / 2 + random.uniform(-5, 5, 3)
    return nibabel.Nifti1Image(data.astype(np.uint8), affine)


def write_phantoms(folder, count, **options):
    """phantom_00.nii.gz … in a folder, which is returned."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        nibabel.save(phantom(index, **options), folder / f"phantom_{index:02d}.nii.gz")
    return folder


#: Options of a run that takes a fraction of a second per step.
TINY = [
    "--dataset",
    "t1-brain",
    "--size",
    "16",
    "--spacing",
    "14",
    "--head",
    "points",
    "--channels",
    "8",
    "8",
    "8",
    "8",
    "--set",
    "network.options.points=8",
    "--set",
    "network.options.groups=2",
    "--batch",
    "2",
    "--warmup",
    "2",
    "--log-every",
    "2",
    "--checkpoint-every",
    "2",
    "--validate-every",
    "4",
    "--validate-draws",
    "4",
    "--picture-every",
    "0",
    "--ema-start",
    "1",
    "--ema-every",
    "1",
    "--threads",
    "1",
    "--device",
    "cpu",
]
