"""Accuracy and time against the number of diffusion steps, where the diffusion alone has to do it.

Known transforms from within the diffusion's own range: draws of its forward process at a middle and at the last
timestep, on held-out scans.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from SpatialDiffusionCore.spatial import geometry

from . import hard, measures, tables
from .cases import Arguments, Task, Todo, rng, stem

#: Groups of cases: the timestep of the draw. The schedule is that of the brain preset, not of the model at hand, so
#: that the cases stay the same.
TIMESTEPS = {"near": 30, "far": 65}
_SCHEDULE = {"timesteps": 65, "transform_range": (0.01, 0.07), "translation_range": (0.15, 1.2), "kind": "cosine"}
_GRID = (64, 64, 64), 3.5

COUNTS = (1, 2, 3, 4, 8, 16, 32, 65)
NAIVE = (2, 3, 4, 8, 16)

#: Both volumes look as scans do: a little bias, gamma and noise, drawn independently.
EVERYDAY = {
    "bias": {"amplitude": 0.3},
    "intensity": {"gain": 0.2, "gamma": 0.2},
    "noise": {"sigma": 0.04, "inside": 0.0},
}


@cache
def draw(subject: str, seed: int) -> hard.Draw:
    """A draw of the forward process for a subject "group/scan"."""
    return of_process(rng("steps", subject, seed), TIMESTEPS[subject.split("/")[0]])


def of_process(generator, timestep: int) -> hard.Draw:
    """A draw of the forward process at a timestep; the fixed volume and the moving header stay."""
    import torch

    from SpatialDiffusionCore.method import diffusion
    from SpatialDiffusionCore.method.schedule import Schedule

    numbers = torch.Generator().manual_seed(int(generator.integers(2**62)))
    theta, _ = diffusion.draw(Schedule(**_SCHEDULE), torch.tensor([timestep]), _GRID[0], numbers, rigid_share=0.4)
    frame = geometry.from_parts(_GRID[1] * np.eye(3)) @ geometry.normalized_to_voxel(_GRID[0])
    frame[:3, 3] = 0  # about the center of the cube
    matrix = geometry.theta_to_world(theta[0].double().numpy(), frame, frame)
    still = np.eye(3), np.zeros(3)
    return hard.Draw(still, (matrix[:3, :3], matrix[:3, 3]), still, round(geometry.decompose(matrix).rotation_deg, 1))


def _cases(arguments: Arguments) -> list:
    seed, todos = arguments.seed, []
    for scan in hard.held_out(arguments.data)[: arguments.subjects or 10]:
        for group in TIMESTEPS:
            name = f"{group}/{stem(scan)}"
            todos.append(
                Todo(
                    name,
                    draw(name, seed).degrees,
                    lambda scan=scan, name=name: hard.make_case(
                        "steps", name, scan, scan, name, seed, EVERYDAY, arguments.scratch, transform=draw
                    ),
                )
            )
    return todos


def _table(records) -> str:
    rows = []
    for method in tables.methods(records):
        mine = tables.pick(records, method=method)
        row = [tables.label(method)]
        for group in TIMESTEPS:
            found = [r for r in mine if tables.group(r) == group]
            row += [tables.error(p)(found) if found else "–" for p in (50, 95)] + [
                tables.success(found) if found else "–"
            ]
        timed = [r for r in mine if "cpu_seconds" in r]
        rows.append(row + [f"{np.median([r['cpu_seconds'] for r in timed]):.2f}" if timed else "–", str(len(mine))])
    figures = [f"{group}: {what}" for group in TIMESTEPS for what in ("median, mm", "95 %", "< 5 mm, %")]
    return tables.table(["", *figures, "CPU seconds, median", "n"], rows)


def _comparable(records) -> list:
    """Records of the methods that did at least half as many cases as the one that did most."""
    counts = {m: len(tables.pick(records, method=m)) for m in tables.methods(records)}
    return [r for r in records if 2 * counts[r["method"]] >= max(counts.values())]


def _section(records) -> list:
    return [
        "## Number of steps",
        "The diffusion alone (no search, no refinement), from the tissue's centers, on held-out scans under draws of "
        f"its forward process at timestep {TIMESTEPS['near']} (near) and {TIMESTEPS['far']} (far), with mild bias, "
        "gamma and noise. Error: RMS over the head. One step is the single shot; again and again: the prediction for "
        "the last timestep applied whole each time.",
        _table(records),
    ]


def _summary(records) -> list:
    return [
        "**How many steps**: the diffusion alone, on held-out scans under draws of its own forward process from "
        f"timestep {TIMESTEPS['near']} (near) and {TIMESTEPS['far']} (far). One step is the single shot; again and "
        "again: that applied repeatedly.",
        _table(_comparable(records)),
        tables.FIGURE,
    ]


def _series(records, name: str, value) -> tuple:
    """(numbers of steps, a value of each) of a method that was run with several."""
    counts, values = [], []
    for method in tables.methods(records):
        base, count, *_ = tables.parse(method)
        if base == name and count:
            counts.append(count)
            values.append(value(tables.pick(records, method=method)))
    return counts, values


def _draw_panel(axis, records, title: str, ylabel: str, value) -> None:
    """A value of records against the number of steps."""
    records = _comparable(records)
    for name, color in (("diffusion", "tab:blue"), ("naive", "tab:orange")):
        counts, values = _series(records, name, value)
        if counts:
            axis.plot(counts, values, "o-", color=color, label=tables.label(name).lstrip("· "))
    published = tables.pick(records, method="reference")
    if published:
        label = tables.label("reference").lstrip("· ")
        axis.plot([65], [value(published)], "s", color="tab:red", ms=8, label=label)
    axis.set_xscale("log", base=2)
    axis.set(title=title, xlabel="steps K", ylabel=ylabel, ylim=(0, None))
    axis.set_xticks(COUNTS, [str(k) for k in COUNTS])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _median_of(group: str):
    def value(found):
        errors = [r.get("error_mm", tables.FAILED_MM) for r in found if tables.group(r) == group]
        return np.median(errors) if errors else np.nan

    return value


def _seconds(found):
    return np.median([r["cpu_seconds"] for r in found if "cpu_seconds" in r] or np.nan)


def _panels(records) -> list:
    """Median errors of the two groups and time against the number of steps."""
    values = [(f"{g} (timestep {t})", "median error, mm", _median_of(g)) for g, t in TIMESTEPS.items()]
    values.append(("time", "CPU seconds", _seconds))
    return [partial(_draw_panel, title=title, ylabel=ylabel, value=value) for title, ylabel, value in values]


TASKS = (
    Task(
        "steps",
        "the diffusion alone against its number of steps",
        _cases,
        lambda arguments: measures.known,
        _section,
        summary=_summary,
        panels=_panels,
        interleave=True,
        methods=(*(f"diffusion@{k}" for k in COUNTS), *(f"naive@{k}" for k in NAIVE), "reference"),
        choices=("subjects",),
    ),
)
