"""Known transforms between two corrupted versions of one head, from any pose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.spatial import geometry, sampling, volume, volume_file

from . import measures, tables
from .cases import Arguments, Case, Task, Todo, data_root, draw_transform, groups_of, left_out, rng, stem

#: Voxels along the edge of a case's cube, and mm per voxel.
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
    "lesion": {"lesion": {"most": 4, "radius": (10 / _EDGE, 30 / _EDGE)}},
}
CONDITIONS["together"] = {
    **{k: v for name in ("motion", "bias", "slices", "crop") for k, v in CONDITIONS[name].items()},
    "noise": {"sigma": 0.1, "inside": 0.0},
    "contrast": {"monotone": 1.0},
}

#: Conditions that need two volumes of one head: templates (moving, fixed) in one space.
TEMPLATES = {
    "strip": [
        ("mni152_t1_brain_1mm", "mni152_t1_2mm"),
        ("mni152_t1_2mm", "mni152_t1_brain_1mm"),
        ("colin27_t1_brain", "colin27_t1"),
        ("colin27_t1", "colin27_t1_brain"),
    ],
    "t2": [("mni152_t1_2mm", "mni152_t2_2mm"), ("mni152_t2_2mm", "mni152_t1_2mm")],
}


def held_out(data) -> list:
    """The T1 scans that the bundled models' training left out, sources alternating."""
    groups = {}
    for path in left_out(data_root(data), "t1")[0]:
        groups.setdefault(path.name.split("_")[0], []).append(path)
    mixed = []
    while any(groups.values()):
        mixed += [group.pop(0) for group in groups.values() if group]
    return mixed


@dataclass(frozen=True)
class Draw:
    """A known transform: (3×3, shift in mm) of the fixed and the moving sampling and of the moving header; degrees."""

    to_fixed: tuple
    to_moving: tuple
    turn: tuple
    degrees: float


def draw_known(name: str, seed: int) -> Draw:
    """A small turn of the fixed voxels; scales 0.8–1.25 and shear of the moving ones; the moving header turned by up
    to 180° and shifted by up to 50 mm. They belong to the scan and the seed, so that every condition meets the same."""
    generator = rng("hard", name, seed)
    to_fixed = draw_transform(generator, 8, 1.0, 0.0), generator.uniform(-6, 6, 3)
    to_moving = draw_transform(generator, 20, 1.25, 0.08), generator.uniform(-6, 6, 3)
    degrees = float(generator.uniform(0, 180))
    axis, shift = generator.normal(size=(2, 3))
    turn = geometry.rotation_about(axis, np.radians(degrees))
    return Draw(
        to_fixed, to_moving, (turn, shift / np.linalg.norm(shift) * generator.uniform(0, 50)), round(degrees, 1)
    )


@lru_cache(maxsize=1)
def known_pair(moving, fixed, subject: str, seed: int, transform=draw_known):
    """(turn of the moving header, clean fixed and moving values, grid, truth, mean, covariance) of two scans (or one
    scan twice) that lie in one space. transform: function of (subject, seed) that gives a Draw."""
    sources = [sampling.prepare(volume_file.load(path)) for path in ((fixed,) if moving == fixed else (fixed, moving))]
    draw, center = transform(subject, seed), sources[0].tissue_center
    to_fixed, to_moving, turn = (
        geometry.about(linear, center, shift) for linear, shift in (draw.to_fixed, draw.to_moving, draw.turn)
    )
    grid = sampling.canonical_grid(sources[0], SIZE, SPACING)
    values = [
        sampling.sample(source, grid.moved(matrix))
        for source, matrix in ((sources[0], to_fixed), (sources[-1], to_moving))
    ]
    # The scan's point p lies at to_fixed⁻¹·p in the fixed volume and at turn·to_moving⁻¹·p in the moving one.
    to_world = turn @ np.linalg.inv(to_moving)
    linear = to_world[:3, :3]
    return (
        turn,
        values,
        grid,
        np.linalg.inv(to_fixed) @ np.linalg.inv(to_world),
        geometry.transform_points(to_world, sources[-1].tissue_center[None])[0],
        linear @ sources[-1].tissue_covariance @ linear.T,
    )


def make_case(
    task: str,
    name: str,
    moving,
    fixed,
    subject: str,
    seed: int,
    artifacts,
    folder,
    key=None,
    modality=("t1-brain", "t1-brain"),
    transform=draw_known,
) -> Case:
    """Make a case with a known transform; its two files are written to ``folder``.

    subject: whose transform. artifacts: of both volumes, or (of the fixed, of the moving one); their random numbers
    belong to (task, subject, seed, key, role).
    """
    turn, clean, grid, truth, mean, covariance = known_pair(moving, fixed, subject, seed, transform)
    paths = []
    both = artifacts if isinstance(artifacts, tuple) else (artifacts, artifacts)
    for role, values, wanted in zip(("fixed", "moving"), clean, both):
        corrupted, header = corrupt(values.clone(), grid.voxel_to_ras, wanted, rng(task, subject, seed, key, role))
        paths.append(Path(folder) / f"{role}.nii")
        volume_file.save(volume.Volume(corrupted, header, role), paths[-1])
    return Case(
        task,
        name,
        transform(subject, seed).degrees,
        seed,
        paths[1],
        paths[0],
        turn,
        truth=truth,
        mean=mean,
        covariance=covariance,
        modality=modality,
    )


def hard_case(scan, condition: str, seed: int, folder) -> Case:
    """One scan under a condition."""
    subject = stem(scan)
    return make_case(
        "hard", f"{condition}/{subject}", scan, scan, subject, seed, CONDITIONS[condition], folder, key=condition
    )


def corrupt(values, voxel_to_ras, artifacts: dict, generator):
    """(float32 array 0…1000, header) of a 1×1×D×H×W volume (0…1) with artifacts."""
    import torch

    from SpatialDiffusionTraining.augmentation import Corruption

    artifacts = dict(artifacts)
    crop = artifacts.pop("crop", None)
    corruption = Corruption({name: {"probability": 1.0, **options} for name, options in artifacts.items()})
    numbers = torch.Generator().manual_seed(int(generator.integers(2**62)))
    draws = corruption.draw(1, numbers)
    inside = np.argwhere(values[0, 0].numpy() > 0.1)
    values = corruption.filter(corruption.warp(values, torch.eye(3, 4)[None], draws), draws)
    array = np.ascontiguousarray(1000 * values[0, 0].numpy(), dtype=np.float32)
    if crop is None:
        return array, voxel_to_ras
    first, last = crop_box(inside.min(0), inside.max(0) + 1, generator, **crop)
    part = array[tuple(slice(a, b) for a, b in zip(first, last))]
    return np.ascontiguousarray(part), voxel_to_ras @ geometry.from_parts(np.eye(3), first)


def crop_box(first, last, generator, keep: float = 0.6, most: int = 3):
    """A random part of a box of voxels (first inclusive, last exclusive) with ``keep`` of its volume.

    One to ``most`` axes are cut alike, anywhere.
    """
    first, last = np.array(first, int), np.array(last, int)
    axes = generator.permutation(3)[: generator.integers(1, most + 1)]
    for axis in axes:
        size = last[axis] - first[axis]
        kept = max(1, int(round(size * keep ** (1 / len(axes)))))
        first[axis] += generator.integers(0, size - kept + 1)
        last[axis] = first[axis] + kept
    return first, last


def _cases(arguments: Arguments) -> list:
    """Scan by scan, so that each is read once; then the pairs of templates."""
    conditions = groups_of(arguments, (*CONDITIONS, *TEMPLATES))
    seed, folder, count = arguments.seed, arguments.scratch, arguments.subjects or 10
    todos = []
    scans = [c for c in conditions if c in CONDITIONS]
    for scan in held_out(arguments.data)[:count] if scans else []:
        for condition in scans:
            todos.append(
                Todo(
                    f"{condition}/{stem(scan)}",
                    draw_known(stem(scan), seed).degrees,
                    lambda s=scan, c=condition: hard_case(s, c, seed, folder),
                )
            )
    for condition in (c for c in conditions if c in TEMPLATES):
        choice = TEMPLATES[condition]
        for index in range(count):
            todos.append(template_case(arguments, condition, *choice[index % len(choice)], index // len(choice)))
    return todos


def template_case(arguments: Arguments, condition: str, moving: str, fixed: str, number: int) -> Todo:
    """A pair of templates with the transform of that number."""
    folder = data_root(arguments.data) / "templates"
    subject = f"{moving}-{fixed}-{number}"
    paths = [folder / f"{name}.nii.gz" for name in (moving, fixed)]
    modality = tuple("t2-head-neck" if "_t2_" in name else "t1-brain" for name in (moving, fixed))
    name = f"{condition}/{subject}"
    return Todo(
        name,
        draw_known(subject, arguments.seed).degrees,
        lambda: make_case("hard", name, *paths, subject, arguments.seed, {}, arguments.scratch, modality=modality),
    )


def _measure(arguments: Arguments):
    return measures.known


def _section(records) -> list:
    order = (*CONDITIONS, *TEMPLATES)
    return [
        "## Known transforms, hard conditions",
        "Held-out scans; turned by up to 180°, shifted by up to 50 mm, scaled by 0.8–1.25, sheared; both volumes "
        "corrupted independently; strip: whole head and skull-stripped, t2: T1 and T2, both of MNI152 and Colin27. "
        "Error: RMS distance over the head. A success is below 5 mm.",
        "**Success, %**",
        tables.by_group(records, tables.success, order),
        "**Median error, mm**",
        tables.by_group(records, tables.error(50), order),
        "**95th percentile of the error, mm**",
        tables.by_group(records, tables.error(95), order),
        "**Time and memory, one registration**",
        tables.cost(records),
    ]


def _summary(records) -> list:
    return [
        "**Corrupted heads**: known transforms of held-out scans, turned by up to 180°, shifted by up to 50 mm, scaled "
        "and sheared, both volumes corrupted independently. Success (error over the head below 5 mm) in %, median "
        "error in mm; in brackets the number of cases, where it differs.",
        tables.groups_down(records, tables.rate_and_median, (*CONDITIONS, *TEMPLATES)),
        tables.cost(records),
    ]


def _panel(axis, records) -> None:
    conditions = [c for c in (*CONDITIONS, *TEMPLATES) if any(tables.group(r) == c for r in records)]
    methods = tables.methods(records)
    width = 0.8 / len(methods)
    for index, method in enumerate(methods):
        mine = tables.pick(records, method=method)
        groups = [[r["success"] for r in mine if tables.group(r) == c] for c in conditions]
        heights = [100 * np.mean(g) if g else np.nan for g in groups]
        axis.bar(
            np.arange(len(conditions)) + (index - (len(methods) - 1) / 2) * width,
            heights,
            width,
            color=tables.color(method),
            label=tables.label(method).lstrip("· "),
        )
    axis.set_xticks(range(len(conditions)), conditions, rotation=30, ha="right")
    axis.set(
        ylabel="success (< 5 mm), %",
        ylim=(0, 135),
        yticks=range(0, 101, 20),
        title="Known transforms, corrupted volumes",
    )
    axis.legend(fontsize=7, loc="upper center", ncols=2)
    axis.grid(axis="y", alpha=0.3)


TASKS = (
    Task(
        "hard",
        "known transforms of corrupted heads, from any pose",
        _cases,
        _measure,
        _section,
        summary=_summary,
        panels=lambda records: [_panel],
        interleave=True,
        choices=("conditions", "subjects"),
    ),
)
