"""Volumes for the golden registrations: read, turned by their headers, and spoiled in fixed ways.

A source is a function without arguments that returns a Volume; sources are made of sources. What spoils a volume rounds
to whole numbers, so that the same volume comes out on every machine.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Callable

import numpy as np

import SpatialDiffusionCore
from SpatialDiffusionCore import Volume, load

Source = Callable[[], Volume]
ROOT = Path(__file__).resolve().parents[2]
DEMO = Path(SpatialDiffusionCore.__file__).parent / "demo"


class Missing(Exception):
    """A volume that is not on this machine; the sentence says what is needed."""


def data_folder() -> Path:
    """The development data (environment variable SPATIAL_DIFFUSION_DATA). Raises Missing where there is none."""
    folder = Path(os.environ.get("SPATIAL_DIFFUSION_DATA", ROOT.parent / "shared" / "data"))
    for candidate in (folder, folder / "data"):
        if (candidate / "t1").is_dir():
            return candidate
    raise Missing("needs the development data (set SPATIAL_DIFFUSION_DATA)")


def demo(name: str) -> Source:
    """A volume of the bundled pair: "moving_t1_brain" or "fixed_mni152_brain"."""
    return lambda: load(DEMO / f"{name}.nii.gz")


def data(name: str) -> Source:
    """A volume of the development data, such as "t1/ixi_012"."""
    return lambda: load(data_folder() / f"{name}.nii.gz")


# --- moved ---------------------------------------------------------------------------------------------------------


def rotation(axis, degrees: float, shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    """4×4: a rotation about ``axis`` through the origin, then ``shift`` (mm)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix[:3, 3] = shift
    return matrix


def turned(source: Source, axis, degrees: float, shift=(0.0, 0.0, 0.0)) -> Source:
    """The same voxels under a header that is turned about the origin."""
    return lambda: source().moved(rotation(axis, degrees, shift))


def mirrored(source: Source) -> Source:
    """The voxels in the opposite order along the first axis, under the same header."""

    def made():
        volume = source()
        return replace(volume, data=volume.data[::-1].copy())

    return made


# --- spoiled -------------------------------------------------------------------------------------------------------


def cropped(source: Source, axis: int, first: float, last: float) -> Source:
    """The part of a volume from ``first`` to ``last`` (shares of its length) along an axis of the array."""

    def made():
        volume = source()
        start, stop = (round(share * volume.shape[axis]) for share in (first, last))
        header = volume.voxel_to_ras.copy()
        header[:3, 3] += header[:3, axis] * start
        part = [slice(None)] * 3
        part[axis] = slice(start, stop)
        return replace(volume, data=volume.data[tuple(part)].copy(), voxel_to_ras=header)

    return made


def noisy(source: Source, strength: float, seed: int = 0) -> Source:
    """With white noise, its deviation a share of the volume's largest value."""

    def made():
        volume = source()
        noise = np.random.default_rng(seed).normal(0, strength * float(volume.data.max()), volume.shape)
        return replace(volume, data=np.round(volume.data + noise).clip(0).astype(np.float32))

    return made


def thick(source: Source, axis: int, count: int) -> Source:
    """Slices of ``count`` voxels along an axis of the array."""

    def made():
        volume = source()
        slices = np.moveaxis(volume.data, axis, 0)[: volume.shape[axis] // count * count]
        mean = np.round(slices.reshape(-1, count, *slices.shape[1:]).astype(float).sum(1) / count)
        header = volume.voxel_to_ras.copy()
        header[:3, 3] += header[:3, axis] * (count - 1) / 2
        header[:3, axis] *= count
        return replace(volume, data=np.moveaxis(mean, 0, axis).astype(np.float32).copy(), voxel_to_ras=header)

    return made


def noise(shape, spacing: float, seed: int) -> Source:
    """Nothing but noise."""
    return lambda: Volume(
        np.round(np.random.default_rng(seed).normal(100, 20, shape)).astype(np.float32),
        np.diag([spacing, spacing, spacing, 1.0]),
        "noise",
    )


# --- masks ---------------------------------------------------------------------------------------------------------


def inside(source: Source, above: float = 0.0) -> Source:
    """1 where a volume is brighter than ``above``."""

    def made():
        volume = source()
        return replace(volume, data=(volume.data > above).astype(np.uint8), name="mask")

    return made


def box(source: Source, first, last) -> Source:
    """1 in a box of a volume's array, from ``first`` to ``last`` (shares of its lengths)."""

    def made():
        volume = source()
        mask = np.zeros(volume.shape, np.uint8)
        mask[tuple(slice(round(a * n), round(b * n)) for a, b, n in zip(first, last, volume.shape))] = 1
        return replace(volume, data=mask, name="mask")

    return made


# --- eyes ----------------------------------------------------------------------------------------------------------

#: Two acquisitions of one eye, and a third, small as in the tests.
ACQUISITIONS = {
    "first": dict(extent=(5.6, 5.0), shape=(140, 90, 160), axial=0.012, tilt=(1.5, -1.0), seed=11),
    "second": dict(
        extent=(5.2, 5.4),
        shape=(150, 80, 150),
        axial=0.0125,
        turn=112.0,
        shift=(0.4, -0.3),
        scale=(1.03, 0.98),
        shear=0.01,
        tilt=(-2.0, 0.5),
        offset=0.9,
        seed=12,
    ),
    "third": dict(extent=(5.0, 5.0), shape=(120, 80, 140), axial=0.013, turn=-12.0, shift=(-0.2, 0.3), seed=13),
}


def eye(which: str, kind: str = "oct", number: int = 7) -> Source:
    """A phantom of an eye, acquired in one of ACQUISITIONS. Raises Missing without the training package."""

    def made():
        try:
            from SpatialDiffusionTraining import retina
        except ImportError as error:
            raise Missing("needs the training package") from error
        acquisition = retina.Acquisition(**ACQUISITIONS[which], speckle=1.5, motion=0.5)
        return retina.scan(_eye(number), acquisition, kind)

    return made


@cache
def _eye(number: int):
    from SpatialDiffusionTraining import retina

    return retina.make_eye(number)
