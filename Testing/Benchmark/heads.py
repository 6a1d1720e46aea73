"""Whole heads of two people: the labelled brains, each inside the skull, scalp, face and neck of somebody else.

Public scans with labels come stripped, so the heads are put together: a held-out T1 head is laid on each labelled brain
(heads.json, made by ``python -m Benchmark place``) and what lies more than a gap away from the brain is kept of it. The
labels judge, as in the task brains.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.spatial import geometry, volume, volume_file

from . import brains, hard, tables
from .cases import Arguments, Task, Todo, data_root, field_center, groups_of, pose, stem

PLACES = Path(__file__).with_name("heads.json")

GROUPS = ("head on head", "brain on head", "head on brain")

ROTATIONS = (0, 90)

#: mm between the voxels of a head, mm around the brain's field of view that it reaches (left, right, back, front, down,
#: up), mm between brain and skull, and the brightness there as a share of the brain's brightest.
SPACING, REACH, GAP, FLUID = 1.5, ((25, 25), (35, 55), (90, 35)), 5.0, 0.12


def dress(brain: volume.Volume, head: volume.Volume, head_to_brain) -> volume.Volume:
    """The brain inside the other's head, on voxels of SPACING along R, A, S. head_to_brain: 4×4, RAS mm."""
    from scipy.ndimage import distance_transform_edt

    corners = geometry.transform_points(
        brain.voxel_to_ras, np.array(list(np.ndindex(2, 2, 2))) * (np.array(brain.shape) - 1)
    )
    low, high = (
        edge(corners, axis=0) + side
        for edge, side in zip((np.min, np.max), (-np.array(REACH)[:, 0], np.array(REACH)[:, 1]))
    )
    grid = volume.Grid(
        tuple(int(n) for n in np.ceil((high - low) / SPACING) + 1), geometry.from_parts(np.eye(3) * SPACING, low)
    )
    inner = volume.resample(brain, grid).data
    outer = volume.resample(head, grid, head_to_brain).data
    support = inner > 0.05 * np.percentile(inner[inner > 0], 99)
    brightest = np.percentile(inner[support], 95)
    outer = outer * brightest / np.percentile(outer[support], 95)
    apart = distance_transform_edt(~support) * SPACING
    filled = np.where(support, inner, np.where(apart <= GAP, FLUID * brightest, outer))
    return volume.Volume(np.clip(filled, 0, None).astype(np.float32), grid.voxel_to_ras, brain.name)


@cache
def dressed(brain, folder) -> Path:
    """The file of the head around a labelled brain, made when it is first needed."""
    entry = json.loads(PLACES.read_text(encoding="utf-8"))[stem(brain)]
    path = Path(folder) / f"{stem(brain)}_head.nii"
    head = Path(brain).parent.parent / "t1" / f"{entry['head']}.nii.gz"
    volume_file.save(dress(volume_file.load(brain), volume_file.load(head), geometry.as_affine(entry["matrix"])), path)
    return path


def make_places(data, path=PLACES, report=print) -> None:
    """Lay a held-out whole head on every labelled brain, and write how. How exactly it lies matters little."""
    from SpatialDiffusionCore import register

    scans = sorted((data_root(data) / "bench").glob("oasis_*_t1.nii.gz"))
    heads = sorted(p for p in hard.held_out(data) if p.name.startswith("ixi"))
    table = {}
    for brain, head in zip(scans, heads):
        found = register(volume_file.load(head), volume_file.load(brain), modality="t1-brain", device="cpu")
        table[stem(brain)] = {"head": stem(head), "matrix": np.round(found.matrix[:3], 4).tolist()}
        report(f"{stem(head)} on {stem(brain)}: {found.quality.summary()}")
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _cases(arguments: Arguments) -> list:
    """Rotation by rotation, each pair with both dressed, then with one of them, in turns."""
    seed, todos, groups = arguments.seed, [], groups_of(arguments, GROUPS)
    for rotation in arguments.rotations or ROTATIONS:
        plain = brains.sweep(
            replace(arguments, rotations=(rotation,), pairs=arguments.pairs or 10),
            "heads",
            "oasis",
            "t1",
            10,
            ROTATIONS,
            "t1-brain",
        )
        for number, todo in enumerate(plain):
            for group in ("head on head", GROUPS[1 + number % 2]):
                if group in groups:
                    todos.append(
                        Todo(
                            f"{group}/{todo.name}",
                            float(rotation),
                            lambda t=todo, g=group: _case(t.make(), g, seed, arguments.scratch),
                        )
                    )
    return todos


def _case(case, group, seed, scratch):
    moving, _, fixed = group.split()
    files = [
        dressed(path, scratch) if what == "head" else path
        for what, path in ((moving, case.moving), (fixed, case.fixed))
    ]
    name = f"{group}/{case.name}"
    return replace(
        case, name=name, moving=files[0], fixed=files[1], moved=pose(name, case.rotation, seed, field_center(files[0]))
    )


def _tables(records) -> list:
    def figures(found):
        return f"{tables.mean_dice(found)} · {min(r['dice'] for r in found):.3f}"

    parts = []
    for rotation in sorted({r["rotation"] for r in records}):
        parts += [
            f"The moving header turned by {rotation:g}° and shifted by 20 mm: mean Dice · worst pair.",
            tables.groups_down(tables.pick(records, rotation=rotation), figures, GROUPS),
        ]
    return parts + [tables.cost(records)]


def _section(records) -> list:
    return [
        "## Whole heads of two people",
        "The labelled brains of the task brains (Dice of 32 structures), each put into the skull, scalp, face and "
        f"neck of another person (IXI, held out from training), with {GAP:g} mm of fluid between.",
        *_tables(records),
    ]


def _summary(records) -> list:
    return [
        "**Whole heads of two people**: the same labelled brains, each put into the skull, scalp, face and neck of "
        "another person whose scan is held out from training; Dice of 32 structures.",
        *_tables(records),
    ]


TASKS = (
    Task(
        "heads",
        "labelled brains inside other people's heads, on heads and on brains",
        _cases,
        brains.structures,
        _section,
        summary=_summary,
        methods=("default", "no-focus", "no-network", "greedy", "elastix", "greedy-search"),
        choices=("rotations", "pairs", "conditions"),
    ),
)
