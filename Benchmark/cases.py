"""What is registered: brains with manual labels from turned headers, and known transforms of corrupted volumes.

A case is a function of (data, seed) only, so that every method, machine and day meets the same ones.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Optional

import numpy as np

from SpatialDiffusionCore import geometry
from SpatialDiffusionCore.errors import InputError

#: Millimeters that the moving header is shifted by in the rotation sweep.
SHIFT = 20.0


@dataclass(frozen=True)
class Case:
    """One registration to do.

    moving, fixed: volume files. moved: 4×4, RAS → RAS, that goes into the moving header. rotation: degrees.
    labels: (moving, fixed) label files, or None. truth: 4×4 moving → fixed RAS where it is known, with the mean (3)
    and covariance (3×3) of the moving head's points, RAS mm, over which the error counts.
    """

    task: str
    name: str
    rotation: float
    seed: int
    moving: Path
    fixed: Path
    moved: np.ndarray
    labels: Optional[tuple] = None
    truth: Optional[np.ndarray] = None
    mean: Optional[np.ndarray] = None
    covariance: Optional[np.ndarray] = None


def rng(*parts) -> np.random.Generator:
    """A generator whose numbers depend on all of ``parts`` (as text), the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def data_root(folder) -> Path:
    """The folder that holds ``bench`` and ``t1``: the one given or its ``data``."""
    for candidate in (Path(folder), Path(folder) / "data"):
        if (candidate / "bench").is_dir():
            return candidate
    raise InputError(f"{folder} holds no folder 'bench'; give the folder of the benchmark's data.")


# --- brains: the rotation sweep ----------------------------------------------------------------------------


def pairs(count: int = 20, subjects: int = 10) -> list:
    """The first ``count`` of the 20 pairs of subject numbers (moving, fixed): (i, i+3), then (i, i+7)."""
    every = [(i, (i + step) % subjects) for step in (3, 7) for i in range(subjects)]
    return every[:count]


def pose(name: str, degrees: float, seed: int, center) -> np.ndarray:
    """RAS → RAS: a turn about a random axis through ``center``, and a shift in a random direction.

    Axis and direction belong to the pair and the seed: over a sweep only the angle changes.
    """
    directions = rng("pose", name, seed).normal(size=(2, 3))
    axis, shift = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return geometry.about(geometry.rotation_about(axis, np.radians(degrees)), center, SHIFT * shift)


def brains(data, rotations, count: int = 20, seed: int = 0) -> list:
    """The rotation sweep, all rotations of one pair after another."""
    import nibabel

    folder = data_root(data) / "bench"
    subjects = sorted(p.name[: -len("_t1.nii.gz")] for p in folder.glob("oasis_*_t1.nii.gz"))
    if len(subjects) < 10:
        raise InputError(f"{folder} holds {len(subjects)} labelled brains; the benchmark needs 10.")
    cases = []
    for moving, fixed in pairs(count):
        moving, fixed = subjects[moving], subjects[fixed]
        name = f"{moving}-{fixed}"
        image = nibabel.load(folder / f"{moving}_t1.nii.gz")  # reads the header only
        center = geometry.transform_points(image.affine, (np.array([image.shape]) - 1) / 2)[0]
        for degrees in rotations:
            cases.append(Case(
                "brains", name, float(degrees), seed, folder / f"{moving}_t1.nii.gz", folder / f"{fixed}_t1.nii.gz",
                pose(name, degrees, seed, center),
                labels=(folder / f"{moving}_labels.nii.gz", folder / f"{fixed}_labels.nii.gz"),
            ))
    return cases


# --- hard: known transforms of corrupted volumes -----------------------------------------------------------

#: Voxels along the edge of a hard case's cube, and mm per voxel.
SIZE, SPACING = 128, 2.0
_EDGE = SIZE * SPACING

#: Each condition's artifacts (SpatialDiffusionTraining.augmentation; lengths are fractions of the cube's edge). Both
#: volumes of a case get their own draw. "crop" cuts the voxel array and keeps 60 % of the box around the head.
CONDITIONS = {
    "clean": {},
    "contrast": {"contrast": {"monotone": 0.0}},
    "crop": {"crop": {}},
    "motion": {"motion": {"most": 6, "thickness": (8 / _EDGE, 24 / _EDGE), "shift": (5 / _EDGE, 25 / _EDGE)}},
    "shadow": {"shadow": {"controls": (6, 6, 6), "dark": 0.45, "depth": 1.0}},
    "bias": {"bias": {"amplitude": 1.2}},
    "slices": {"thick_slices": {"thickness": (5 / _EDGE, 7 / _EDGE)}},
    "noise": {"noise": {"sigma": 0.2, "inside": 0.0}},
    "blur": {"blur": {"sigma": 5 / _EDGE}},
}
CONDITIONS["together"] = {
    **{k: v for name in ("motion", "bias", "slices", "crop") for k, v in CONDITIONS[name].items()},
    "noise": {"sigma": 0.1, "inside": 0.0}, "contrast": {"monotone": 1.0},
}


def held_out(data) -> list:
    """The T1 scans that training leaves out (the same split as training makes), sources alternating."""
    from SpatialDiffusionTraining import datasets

    scans = datasets.split(datasets.find_scans(data_root(data) / "t1"))[1]
    groups = {}
    for path in scans:
        groups.setdefault(path.name.split("_")[0], []).append(path)
    mixed = []
    while any(groups.values()):
        mixed += [group.pop(0) for group in groups.values() if group]
    return mixed


def hard(data, conditions, count: int, seed: int, folder) -> list:
    """Functions that make the hard cases, subject by subject; volumes are written to ``folder`` when called."""
    unknown = set(conditions) - set(CONDITIONS)
    if unknown:
        raise InputError(f"Unknown conditions {sorted(unknown)}; choose among: {', '.join(CONDITIONS)}.")
    scans = held_out(data)[:count]
    return [
        (f"{condition}/{scan.name.split('.')[0]}", lambda s=scan, c=condition: hard_case(s, c, seed, folder))
        for scan in scans for condition in conditions
    ]


def draw_transform(generator, degrees: float, scale: float, shear: float) -> np.ndarray:
    """3×3: a turn by up to ``degrees`` about any axis, scales within 1/scale…scale, shears within ±shear."""
    turn = geometry.rotation_about(generator.normal(size=3), np.radians(degrees * generator.uniform(-1, 1)))
    stretch = np.diag(np.exp(np.log(scale) * generator.uniform(-1, 1, 3)))
    stretch[0, 1], stretch[0, 2], stretch[1, 2] = shear * generator.uniform(-1, 1, 3)
    return turn @ stretch


@lru_cache(maxsize=1)
def hard_pair(scan, seed: int):
    """A scan's clean pair: (turn of the moving header, its degrees, fixed and moving values, grid, truth, mean,
    covariance). The transform belongs to the scan and the seed, so that every condition meets the same one."""
    from SpatialDiffusionCore import volume

    source = volume.prepare(volume.load(scan))
    center = source.tissue_center
    generator = rng("hard", _subject(scan), seed)
    to_fixed = geometry.about(draw_transform(generator, 8, 1.0, 0.0), center, generator.uniform(-6, 6, 3))
    to_moving = geometry.about(draw_transform(generator, 20, 1.25, 0.08), center, generator.uniform(-6, 6, 3))
    degrees = float(generator.uniform(0, 180))
    axis, shift = generator.normal(size=(2, 3))
    turn = geometry.about(
        geometry.rotation_about(axis, np.radians(degrees)), center,
        shift / np.linalg.norm(shift) * generator.uniform(0, 50),
    )
    grid = volume.canonical_grid(source, SIZE, SPACING)
    values = [volume.sample(source, grid.moved(matrix)) for matrix in (to_fixed, to_moving)]
    # The scan's point p lies at to_fixed⁻¹·p in the fixed volume and at turn·to_moving⁻¹·p in the moving one.
    to_world = turn @ np.linalg.inv(to_moving)
    linear = to_world[:3, :3]
    return (turn, round(degrees, 1), values, grid, np.linalg.inv(to_fixed) @ np.linalg.inv(to_world),
            geometry.transform_points(to_world, center[None])[0], linear @ source.tissue_covariance @ linear.T)


def _subject(scan) -> str:
    return Path(scan).name.split(".")[0]


def hard_case(scan, condition: str, seed: int, folder) -> Case:
    """Make one hard case: fixed and moving volume of one scan, and the transform between them.

    The voxels are sampled under a small turn (fixed) and an affine with scales 0.8–1.25 and shear (moving); the
    moving header is turned by up to 180° and shifted by up to 50 mm on top. The files are written to ``folder``.
    """
    from SpatialDiffusionCore import volume

    subject = _subject(scan)
    turn, degrees, clean, grid, truth, mean, covariance = hard_pair(scan, seed)
    paths = []
    for role, values in zip(("fixed", "moving"), clean):
        numbers = rng("hard", subject, seed, condition, role)
        corrupted, header = corrupt(values.clone(), grid.voxel_to_ras, condition, numbers)
        paths.append(Path(folder) / f"{role}.nii")
        volume.save(volume.Volume(corrupted, header, role), paths[-1])
    return Case("hard", f"{condition}/{subject}", degrees, seed, paths[1], paths[0], turn, truth=truth, mean=mean,
                covariance=covariance)


def corrupt(values, voxel_to_ras, condition: str, generator):
    """(float32 array 0…1000, header) of a 1×1×D×H×W volume (0…1) with a condition's artifacts."""
    import torch

    from SpatialDiffusionTraining.augmentation import Corruption

    artifacts = dict(CONDITIONS[condition])
    crop = artifacts.pop("crop", None)
    corruption = Corruption({name: {"probability": 1.0, **options} for name, options in artifacts.items()})
    numbers = torch.Generator().manual_seed(int(generator.integers(2**62)))
    draws = corruption.draw(1, numbers)
    inside = np.argwhere(values[0, 0].numpy() > 0.1)
    values = corruption.filter(corruption.warp(values, torch.eye(3, 4)[None], draws), draws)
    array = np.ascontiguousarray(1000 * values[0, 0].numpy(), dtype=np.float32)
    if crop is None:
        return array, voxel_to_ras
    first, last = crop_box(inside.min(0), inside.max(0) + 1, generator)
    part = array[tuple(slice(a, b) for a, b in zip(first, last))]
    return np.ascontiguousarray(part), voxel_to_ras @ geometry.from_parts(np.eye(3), first)


def crop_box(first, last, generator, keep: float = 0.6):
    """A random part of a box of voxels (first inclusive, last exclusive) with ``keep`` of its volume.

    One, two or all three axes are cut alike, anywhere.
    """
    first, last = np.array(first, int), np.array(last, int)
    axes = generator.permutation(3)[: generator.integers(1, 4)]
    for axis in axes:
        size = last[axis] - first[axis]
        kept = max(1, int(round(size * keep ** (1 / len(axes)))))
        first[axis] += generator.integers(0, size - kept + 1)
        last[axis] = first[axis] + kept
    return first, last
