"""Cases without a right answer, or with half the evidence: does the method say so?"""

from __future__ import annotations

from functools import partial

import numpy as np

from SpatialDiffusionCore.spatial import volume, volume_file

from . import hard, measures, tables
from .cases import Arguments, Case, Task, Todo, any_pose, data_root, field_center, groups_of, rng, stem

#: What each group holds; "half" has a right answer, which half a head shows, and "true" is there for comparison.
GROUPS = {
    "organ": "a neck CT on a T1 brain",
    "noise": "noise on a T1 brain",
    "half": "half of a head on the whole",
    "mirror": "a mirrored head on the same head",
    "mirror-other": "a mirrored brain on another person's",
    "true": "the same brain, not mirrored",
}


def _cases(arguments: Arguments) -> list:
    chosen = groups_of(arguments, GROUPS)
    count, seed = arguments.subjects or 6, arguments.seed
    bench = data_root(arguments.data) / "bench"
    brains, necks = (sorted(bench.glob(pattern)) for pattern in ("oasis_*_t1.nii.gz", "*_ct.nii.gz"))
    todos = []
    for group in chosen:
        if group in ("half", "mirror"):
            for scan in hard.held_out(arguments.data)[:count]:
                todos.append(
                    Todo(
                        f"{group}/{stem(scan)}",
                        hard.draw_known(stem(scan), seed).degrees,
                        partial(_of_one_head, group, scan, arguments),
                    )
                )
            continue
        for number in range(count):
            fixed = brains[number % len(brains)]
            choice = necks if group == "organ" else brains if group == "noise" else brains[3:] + brains[:3]
            moving = choice[number % len(choice)]
            name = f"{group}/{stem(moving)}-{stem(fixed)}"
            degrees, moved = any_pose(rng("hopeless", name, seed))
            make = partial(_of_two, group, name, round(degrees, 1), moving, fixed, moved, arguments)
            todos.append(Todo(name, round(degrees, 1), make))
    return todos


def _of_one_head(group: str, scan, arguments: Arguments) -> Case:
    """Half of a scan, or its mirror image, against the whole, under the hard task's known transforms."""
    name, subject = f"{group}/{stem(scan)}", stem(scan)
    changes = ({}, {"crop": {"keep": 0.5, "most": 1}} if group == "half" else {})
    case = hard.make_case("hopeless", name, scan, scan, subject, arguments.seed, changes, arguments.scratch, key=group)
    if group == "half":
        return case
    moving = volume_file.load(case.moving)
    volume_file.save(mirror(moving), case.moving)
    return Case("hopeless", name, case.rotation, case.seed, case.moving, case.fixed, case.moved)


def mirror(source: volume.Volume) -> volume.Volume:
    """The same header with the voxels in reverse order along the axis nearest to left–right."""
    axis = int(np.abs(source.voxel_to_ras[0, :3] / source.spacing).argmax())
    return volume.Volume(np.ascontiguousarray(np.flip(source.data, axis)), source.voxel_to_ras, source.name)


def noise(like: volume.Volume, generator, smooth: float) -> volume.Volume:
    """An ellipsoid of noise with the shape of a volume; smooth: standard deviation of a blur, voxels."""
    from scipy.ndimage import gaussian_filter

    values = generator.normal(size=like.shape).astype(np.float32)
    if smooth:
        values = gaussian_filter(values, smooth)
    values = 100 * np.clip(1.5 + 0.5 * values / values.std(), 0, 3)
    place = [np.linspace(-1, 1, n) for n in like.shape]
    inside = sum(p**2 for p in np.meshgrid(*place, indexing="ij", sparse=True)) < 0.8
    return volume.Volume((values * inside).astype(np.float32), like.voxel_to_ras, "noise")


def _of_two(group, name, degrees, moving, fixed, moved, arguments: Arguments) -> Case:
    center = field_center(moving)
    if group not in ("organ", "true"):
        source = volume_file.load(moving)
        if group == "noise":
            generator = rng("hopeless", name, arguments.seed, "voxels")
            source = noise(source, generator, float(generator.integers(0, 2) * 4))
        else:
            source = mirror(source)
        moving = arguments.scratch / "moving.nii"
        volume_file.save(source, moving)
    modality = ("any", "any") if group in ("organ", "noise") else ("t1-brain", "t1-brain")
    return Case("hopeless", name, degrees, arguments.seed, moving, fixed, moved(center), modality=modality)


def measure(arguments: Arguments):
    """Error where the right answer is known ("half"); otherwise only a "true" one is a success (see task brains)."""

    def judge(case, matrix):
        if case.truth is not None:
            return measures.known(case, matrix)
        return {"success": matrix is not None and case.name.startswith("true/")}

    return judge


def _words(records) -> str:
    rows = []
    for method in tables.methods(records):
        for group, what in GROUPS.items():
            found = [r for r in tables.pick(records, method=method) if tables.group(r) == group]
            if not found:
                continue
            said = [r.get("confidence") or "failed" for r in found]
            spreads = [r["spread_mm"] for r in found if r.get("spread_mm") is not None]
            rows.append(
                [
                    tables.label(method),
                    what,
                    *(str(said.count(word)) for word in ("good", "fair", "poor")),
                    f"{np.median(spreads):.1f}" if spreads else "–",
                    tables.error(50)(found) if any("error_mm" in r for r in found) else "–",
                ]
            )
    header = ["", "case", "good", "fair", "poor", "spread, median mm", "error, median mm"]
    return tables.table(header, rows)


def _told(records) -> list:
    """How often a brain was more alike than its mirror image, a sentence a method."""
    parts = []
    for method in tables.methods(records):
        alike = {r["case"]: r.get("similarity_after") for r in tables.pick(records, method=method)}
        pairs = [
            (value, alike.get("mirror-other" + name[len("true") :]))
            for name, value in alike.items()
            if name.startswith("true/")
        ]
        pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
        if pairs:
            parts.append(
                f"{tables.label(method)}: the true brain ended more alike than its mirror image in "
                f"{sum(a > b for a, b in pairs)} of {len(pairs)} pairs of people (by "
                f"{np.median([a - b for a, b in pairs]):.3f} in the median)."
            )
    return parts


def _section(records) -> list:
    return [
        "## Hopeless cases",
        "No transform is right, but for half of a head; the moving header turned by up to 180° and shifted by up to "
        "50 mm.",
        _words(records),
        *_told(records),
        "**Time and memory, one registration**",
        tables.cost(records),
    ]


def _summary(records) -> list:
    return [
        "**Hopeless cases**: what the method says where no transform is right (half of a head has one).",
        _words(mine := tables.pick(records, method=tables.methods(records)[0])),
        *_told(mine),
    ]


TASKS = (
    Task(
        "hopeless",
        "other organs, noise, half and mirrored heads",
        _cases,
        measure,
        _section,
        methods=("default", "no-network"),
        summary=_summary,
        interleave=True,
        choices=("conditions", "subjects"),
    ),
)
