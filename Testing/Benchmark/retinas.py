"""Retinas: the real eye's interleaved volumes under known transforms, and pairs of scans of phantom eyes.

The real eye is scanned once: its even and its odd B-scans are two volumes. The odd one is sampled anew on a raster that
is turned, shifted, tilted and scaled. Phantoms are scanned twice (SpatialDiffusionTraining.retina), with eyes that no
training uses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.spatial import geometry, sampling, volume, volume_file

from . import tables
from .cases import Arguments, Case, Task, Todo, data_root, groups_of, rng

#: A success is off by at most so many B-scan spacings laterally and axial pixels in depth, in the median.
LATERAL, AXIAL = 1.0, 2.0

#: Number of the first eye of the benchmark; training begins at 0.
FIRST_EYE = 100_000

SEVERITIES = (0.5, 1.0, 2.0)

ARTIFACTS = ("motion", "doubling", "shadow", "stretch", "crop")

_FILES = "amd01_even.nii.gz", "amd01_odd.nii.gz"


def spoiled(acquisition, name: str, severity: float):
    """An acquisition with one artifact: jumps of 2 pixels and 3 shifted slabs (motion), a copy of 20 % (doubling), half
    of the light lost (shadow), 3 slabs that repeat a B-scan (stretch), a fifth of the field black (crop), each times
    the severity."""
    changes = {
        "clean": {},
        "motion": {"motion": 2.0 * severity, "saccades": int(round(3 * severity))},
        "doubling": {"doubling": 0.2 * severity},
        "shadow": {"shadow": min(0.95, 0.5 * severity)},
        "stretch": {"stretch": int(round(3 * severity))},
        "crop": {"crop": 0.2 * severity},
    }
    return replace(acquisition, **changes[name])


def _acquisitions(kind: str, number: int, seed: int):
    """(fixed, moving) acquisitions of an eye, without artifacts."""
    from SpatialDiffusionTraining import retina

    random = rng("retina", number, seed)
    first = retina.draw_acquisition(random, kind, troubles=False)
    return first, retina.draw_acquisition(random, kind, troubles=False, near=first)


def phantom(kind: str, name: str, severity: float, number: int, seed: int, folder) -> Case:
    """Two scans of an eye with the same kind of artifact. Eye and transform belong to the number and the seed only."""
    from SpatialDiffusionTraining import retina

    eye = retina.make_eye(FIRST_EYE + 1000 * seed + number)
    both = [spoiled(acquisition, name, severity) for acquisition in _acquisitions(kind, number, seed)]
    turn = _phantom_turn(kind, number, seed)
    return scanned_twice(kind, _name(name, severity, number), turn, seed, kind, eye, both, folder)


def scanned_twice(task: str, name: str, turn: float, seed: int, kind: str, eye, acquisitions, folder) -> Case:
    """The case of two scans of an eye; acquisitions: (fixed, moving). Its two files are written to ``folder``."""
    from SpatialDiffusionTraining import retina

    paths = [Path(folder) / f"{role}.nii" for role in ("fixed", "moving")]
    for path, acquisition in zip(paths, acquisitions):
        volume_file.save(retina.scan(eye, acquisition, kind), path)
    return Case(
        task,
        name,
        turn,
        seed,
        paths[1],
        paths[0],
        np.eye(4),
        truth=retina.true_transform(*reversed(acquisitions)),
        modality=(kind, kind),
    )


def _name(name: str, severity: float, number: int) -> str:
    return f"{name}@{severity:g}/eye{number:02d}" if name != "clean" else f"clean/eye{number:02d}"


def turn_of(matrix) -> float:
    """Degrees of a transform's turn about the depth axis (the last one), 0…180."""
    return round(abs(float(np.degrees(np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])))), 1)


def real_transform(number: int, seed: int, center) -> np.ndarray:
    """Fixed → moving: a turn by up to 180° about depth, tilt up to 3°, scales up to 5 % (3 % in depth), lateral shifts
    up to 0.6 mm and 0.15 mm in depth."""
    random = rng("real eye", number, seed)
    turn = geometry.rotation_about([0, 0, 1], np.radians(random.uniform(-180, 180)))
    way = random.uniform(0, 2 * np.pi)
    tilt = geometry.rotation_about([np.cos(way), np.sin(way), 0], np.radians(random.uniform(-3, 3)))
    scales = np.diag(np.exp(random.uniform(-1, 1, 3) * np.log([1.05, 1.05, 1.03])))
    return geometry.about(turn @ tilt @ scales, center, [*random.uniform(-0.6, 0.6, 2), random.uniform(-0.15, 0.15)])


def real(data, number: int, seed: int, folder) -> Case:
    """The odd B-scans of the real eye, sampled under a known transform, to the even ones."""
    fixed, odd = (data_root(data) / "oct" / name for name in _FILES)
    source = volume_file.load(odd)
    to_moving = real_transform(number, seed, source.center())
    moving = volume.resample(source, source, to_moving)
    path = Path(folder) / "moving.nii"
    volume_file.save(replace(moving, data=np.round(moving.data).astype(np.uint8)), path)
    truth = np.linalg.inv(to_moving)
    return Case(
        "oct", f"real/{number:02d}", turn_of(truth), seed, path, fixed, np.eye(4), truth=truth, modality=("oct", "oct")
    )


def measure(case: Case, matrix) -> dict:
    """Median lateral and axial error over the fixed tissue that the moving volume shows: µm, B-scan spacings (the
    coarser lateral one of the fixed volume) and axial pixels; "error_mm" is the RMS of all."""
    if matrix is None:
        return {"success": False}
    fixed, moving = volume_file.load(case.fixed), volume_file.load(case.moving)
    stride = [max(1, n // 48) for n in fixed.shape]
    coarse = fixed.data[tuple(slice(None, None, s) for s in stride)]
    points = np.argwhere(coarse > sampling.prepare(fixed).threshold) * stride
    points = geometry.transform_points(fixed.voxel_to_ras, points)
    there = geometry.transform_points(np.linalg.inv(case.truth), points)
    seen = geometry.transform_points(np.linalg.inv(moving.voxel_to_ras), there)
    inside = ((seen >= 0) & (seen <= np.array(moving.shape) - 1)).all(axis=1)
    off = geometry.transform_points(matrix, there[inside]) - points[inside]
    along = off @ (fixed.voxel_to_ras[:3, :3] / fixed.spacing)
    first, depth, last = sampling.scan_order(fixed)
    lateral, axial = float(np.median(np.hypot(along[:, first], along[:, last]))), float(np.median(abs(along[:, depth])))
    lines, pixels = lateral / max(fixed.spacing[[first, last]]), axial / fixed.spacing[depth]
    return {
        "lateral_um": round(1000 * lateral, 1),
        "axial_um": round(1000 * axial, 1),
        "lateral_lines": round(lines, 3),
        "axial_pixels": round(pixels, 3),
        "error_mm": round(float(np.sqrt((off**2).sum(1).mean())), 4),
        "success": bool(lines <= LATERAL and pixels <= AXIAL),
    }


def _cases_of(kind: str):
    def cases(arguments: Arguments) -> list:
        groups = ("real", "clean", *ARTIFACTS) if kind == "oct" else ("clean", *ARTIFACTS)
        chosen = groups_of(arguments, groups)
        seed, folder, todos = arguments.seed, arguments.scratch, []
        if "real" in chosen:
            center = volume_file.load(data_root(arguments.data) / "oct" / _FILES[1]).center()
            for number in range(arguments.draws or 20):
                turn = turn_of(np.linalg.inv(real_transform(number, seed, center)))
                todos.append(Todo(f"real/{number:02d}", turn, lambda n=number: real(arguments.data, n, seed, folder)))
        for number in range(arguments.subjects or 6):
            for name in (c for c in groups if c in chosen and c != "real"):
                for severity in SEVERITIES if name != "clean" else (1.0,):
                    todos.append(
                        Todo(
                            _name(name, severity, number),
                            _phantom_turn(kind, number, seed),
                            lambda n=number, c=name, s=severity: phantom(kind, c, s, n, seed, folder),
                        )
                    )
        return todos

    return cases


def _phantom_turn(kind: str, number: int, seed: int) -> float:
    from SpatialDiffusionTraining import retina

    return turn_of(retina.true_transform(*reversed(_acquisitions(kind, number, seed))))


def _medians(records) -> str:
    """ "80 % · 12 · 5": success, median lateral and axial error in µm of those that ended."""
    ended = [r for r in records if "lateral_um" in r]
    rate = f"{100 * np.mean([r['success'] for r in records]):.0f} %"
    if not ended:
        return rate
    return " · ".join([rate, *(f"{np.median([r[name] for r in ended]):.0f}" for name in ("lateral_um", "axial_um"))])


def _section_of(kind: str):
    def section(records) -> list:
        parts = [
            f"## Retinal {kind.upper()}",
            f"Success (at most {LATERAL:g} B-scan spacing laterally and {AXIAL:g} axial pixels in the median over the "
            "tissue) · median lateral · median axial error in µm.",
        ]
        real_eye = tables.of_artifact(records, "real")
        if real_eye:
            parts += [
                "**The real eye**: odd B-scans under known transforms (any turn about depth, tilt up to 3°, "
                "scales, shifts) to the even ones, 60 µm apart, axial pixels of 7.7 µm.",
                tables.grid(real_eye, tables.group, ["real"], _medians),
            ]
        clean = tables.of_artifact(records, "clean")
        if clean:
            parts += [
                "**Phantoms** of eyes that no training used, scanned twice: any turn about depth, lateral shifts "
                "up to 0.85 mm, tilts, scales, shear; without artifacts:",
                tables.grid(clean, tables.group, ["clean"], _medians),
            ]
        for name in ARTIFACTS:
            mine = tables.of_artifact(records, name)
            if mine:
                levels = sorted({tables.severity(r) for r in mine})
                parts += [
                    f"**{name}**, by severity",
                    tables.grid(mine, tables.severity, levels, _medians, [f"{level:g}" for level in levels]),
                ]
        return [*parts, "**Time and memory, one registration**", tables.cost(records)]

    return section


METHODS = "default", "no-network", "elastix", "greedy"

TASKS = tuple(
    Task(
        kind,
        f"scans of eyes by {kind.upper()}, real and phantoms",
        _cases_of(kind),
        lambda arguments: measure,
        _section_of(kind),
        panels=tables.severity_panels(ARTIFACTS, SEVERITIES, "success, %"),
        methods=METHODS,
        interleave=True,
        choices=("conditions", "subjects", "draws") if kind == "oct" else ("conditions", "subjects"),
    )
    for kind in ("oct", "octa")
)
