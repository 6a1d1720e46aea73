"""What a task, a case and a known transform are; the tasks themselves are modules of their own (tasks.py lists them).

A case is a function of (data, seed) only, so that every method, machine and day meets the same ones.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry

#: Scans that the bundled models' training left out.
HELD_OUT = Path(__file__).with_name("held_out.txt")

#: Millimeters that the moving header is shifted by in the rotation sweeps.
SHIFT = 20.0


#: What the command line can choose of a task's cases; each task says which of these it knows.
CHOICES = ("rotations", "pairs", "conditions", "subjects", "draws")


@dataclass(frozen=True)
class Arguments:
    """What the command line says about the cases; None is the task's own default.

    data: folder. scratch: folder for volumes that a task makes. rotations: degrees. pairs, subjects, draws: the first
    so many of them. conditions: names.
    """

    data: Path
    scratch: Path
    seed: int = 0
    rotations: tuple | None = None
    pairs: int | None = None
    subjects: int | None = None
    draws: int | None = None
    conditions: tuple | None = None


@dataclass(frozen=True)
class Case:
    """One registration to do.

    moving, fixed: volume files. moved: 4×4, RAS → RAS, that goes into the moving header. rotation: degrees.
    labels: (moving, fixed) label files, or None. truth: 4×4 moving → fixed RAS where it is known, with the mean (3)
    and covariance (3×3) of the moving head's points (under the moved header), RAS mm, over which the error counts.
    modality: what this project is told that (moving, fixed) are.
    """

    task: str
    name: str
    rotation: float
    seed: int
    moving: Path
    fixed: Path
    moved: np.ndarray
    labels: tuple | None = None
    truth: np.ndarray | None = None
    mean: np.ndarray | None = None
    covariance: np.ndarray | None = None
    modality: tuple = ("t1-brain", "t1-brain")


@dataclass(frozen=True)
class Todo:
    """A case that is made when it is needed: its name (plain or "group/rest"), its rotation, what makes it."""

    name: str
    rotation: float
    make: Callable[[], Case]


def _nothing(records) -> list:
    return []


@dataclass(frozen=True)
class Task:
    """One part of the benchmark.

    name: of the command line. about: one line of help. cases(Arguments) → Todos in order. measure(Arguments) → function
    of (Case, 4×4 moving → fixed RAS or None where the method failed) that gives a dict with "success" and the figures.
    section(records) → Markdown parts of the report; summary(records) → those of the README. panels(records):
    functions of (axis, records), each a panel of the task's figure. methods: which take part unless named (() = all).
    choices: which of CHOICES it knows. interleave: all methods get a case before the next one is made (for cases that
    are costly to make). takes: whether a method (its name) can do a case (its name).
    """

    name: str
    about: str
    cases: Callable
    measure: Callable
    section: Callable
    summary: Callable = _nothing
    panels: Callable = _nothing
    methods: tuple = ()
    choices: tuple = ()
    interleave: bool = False
    takes: Callable = lambda method, case: True


def groups_of(arguments: Arguments, groups) -> tuple:
    """The groups of cases that the command line names, or all of them; raises InputError for an unknown one."""
    unknown = sorted(set(arguments.conditions or ()) - set(groups))
    if unknown:
        raise InputError(f"Unknown conditions: {', '.join(unknown)}; choose among: {', '.join(groups)}.")
    return tuple(arguments.conditions or groups)


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


def left_out(root: Path, folder: str) -> tuple:
    """(scans of a folder of the data that the bundled models were not trained on, the others); paths in order.

    held_out.txt lists the first, as the split that training makes today is another one. A folder that has none of them
    is other data, which no model was trained on.
    """
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    listed = {line for line in lines if line.startswith(f"{folder}/")}
    scans = sorted((root / folder).glob("*.nii.gz"))
    unseen = [scan for scan in scans if f"{folder}/{scan.name}" in listed] or scans
    return unseen, [scan for scan in scans if scan not in unseen]


def stem(path) -> str:
    """A file's name up to the first dot."""
    return Path(path).name.split(".")[0]


def pairs(count: int | None = None, subjects: int = 10) -> list:
    """The first ``count`` of the pairs of subject numbers (moving, fixed): (i, i+3), then (i, i+7)."""
    every = [(i, (i + step) % subjects) for step in (3, 7) for i in range(subjects)]
    return every[:count]


def field_center(path) -> np.ndarray:
    """Middle of a NIfTI file's field of view, RAS mm; reads the header only."""
    import nibabel

    image = nibabel.load(path)
    return geometry.transform_points(image.affine, (np.array([image.shape[:3]]) - 1) / 2)[0]


def pose(name: str, degrees: float, seed: int, center) -> np.ndarray:
    """RAS → RAS: a turn about a random axis through ``center``, and a shift in a random direction.

    Axis and direction belong to the pair and the seed: over a sweep only the angle changes.
    """
    directions = rng("pose", name, seed).normal(size=(2, 3))
    axis, shift = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return geometry.about(geometry.rotation_about(axis, np.radians(degrees)), center, SHIFT * shift)


def any_pose(generator):
    """(degrees 0…180, function of a center → 4×4): a turn about any axis and a shift of up to 50 mm."""
    degrees = float(generator.uniform(0, 180))
    axis, shift = generator.normal(size=(2, 3))
    shift = shift / np.linalg.norm(shift) * generator.uniform(0, 50)
    turn = geometry.rotation_about(axis, np.radians(degrees))
    return degrees, lambda center: geometry.about(turn, center, shift)


def draw_transform(generator, degrees: float, scale: float, shear: float) -> np.ndarray:
    """3×3: a turn by up to ``degrees`` about any axis, scales within 1/scale…scale, shears within ±shear."""
    turn = geometry.rotation_about(generator.normal(size=3), np.radians(degrees * generator.uniform(-1, 1)))
    stretch = np.diag(np.exp(np.log(scale) * generator.uniform(-1, 1, 3)))
    stretch[0, 1], stretch[0, 2], stretch[1, 2] = shear * generator.uniform(-1, 1, 3)
    return turn @ stretch
