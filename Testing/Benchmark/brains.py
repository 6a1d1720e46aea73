"""Two people's scans with labelled structures, from turned headers: brains, and head-and-neck CTs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.errors import InputError

from . import measures, tables
from .cases import Arguments, Case, Task, Todo, data_root, field_center, pairs, pose

#: How well an affine fitted to the labels does, of each pair (ceiling.py).
CEILINGS = Path(__file__).with_name("ceilings.json")

ROTATIONS = (0, 15, 30, 45, 90, 135, 180)


def sweep(arguments: Arguments, task: str, prefix: str, suffix: str, subjects: int, rotations, modality) -> list:
    """Todos of a rotation sweep over labelled scans of ``bench``, all rotations of one pair after another."""
    folder = data_root(arguments.data) / "bench"
    end = f"_{suffix}.nii.gz"
    names = sorted(
        (p.name[: -len(end)] for p in folder.glob(f"{prefix}_*{end}")),
        key=lambda name: [int(n) for n in re.findall(r"\d+", name)],
    )
    if len(names) < subjects:
        raise InputError(f"{folder} holds {len(names)} labelled scans {prefix}_*; the benchmark needs {subjects}.")
    todos = []
    for numbers in pairs(arguments.pairs, subjects):
        moving, fixed = (names[n] for n in numbers)
        name, center = f"{moving}-{fixed}", field_center(folder / f"{moving}{end}")
        for degrees in arguments.rotations or rotations:
            case = Case(
                task,
                name,
                float(degrees),
                arguments.seed,
                folder / f"{moving}{end}",
                folder / f"{fixed}{end}",
                pose(name, degrees, arguments.seed, center),
                modality=(modality, modality),
                labels=(folder / f"{moving}_labels.nii.gz", folder / f"{fixed}_labels.nii.gz"),
            )
            todos.append(Todo(name, case.rotation, lambda case=case: case))
    return todos


def _brains(arguments: Arguments) -> list:
    return sweep(arguments, "brains", "oasis", "t1", 10, ROTATIONS, "t1-brain")


def structures(arguments: Arguments):
    """The measure: mean Dice of 32 structures, a success from 0.45."""
    return measures.Overlap(measures.read_groups(data_root(arguments.data) / "oasis_labels.tsv"), 0.45)


def sweep_section(records, title: str, words: str, enough: float) -> list:
    """The report's tables of a rotation sweep."""
    parts = [
        f"## {title}",
        words,
        "**Mean Dice**",
        tables.by_rotation(records, tables.mean_dice),
        "**Worst pair**",
        tables.by_rotation(records, lambda found: f"{min(r['dice'] for r in found):.3f}"),
        f"**Success (mean Dice at least {enough:g}), %**",
        tables.by_rotation(records, tables.success),
        "**Time and memory, one registration**",
        tables.cost(records),
    ]
    shared = tables.shared(records)
    if len(shared) < len(records):
        parts += [
            "**Mean Dice on the pairs that every method in the column did**",
            tables.by_rotation(shared, lambda found: f"{tables.mean_dice(found)} [{len(found)}]", subsets=False),
        ]
    return parts


def _section(records) -> list:
    count = len({r["case"] for r in records})
    return sweep_section(
        records,
        "Brains from turned headers",
        (
            f"Ten OASIS-1 scans that no model was trained on, {count} pairs; the moving header is turned about a "
            "random axis and shifted by 20 mm. Mean Dice of 32 structures; (n) where a method did fewer pairs."
        ),
        0.45,
    ) + _beside(records)


def _beside(records) -> list:
    """What the default is measured against: the affine that the labels give, and each peer on the same pairs."""
    parts = []
    ceilings = json.loads(CEILINGS.read_text(encoding="utf-8")) if CEILINGS.is_file() else {}
    known = [ceilings[case] for case in {r["case"] for r in records} if case in ceilings]
    if known:
        parts.append(
            f"An affine fitted to the labels themselves reaches a mean Dice of {np.mean(known):.3f} on these pairs "
            f"({len(known)}): no method that doesn't see them can be asked for more."
        )
    others = [m for m in tables.methods(records) if tables.parse(m).base in tables.PEERS]
    if others and tables.pick(records, method="default"):
        angles = sorted({r["rotation"] for r in records})
        rows = [
            [tables.label(other)]
            + [tables.paired_difference(tables.pick(records, rotation=a), "default", other) for a in angles]
            for other in others
        ]
        parts += [
            "**The default's mean Dice less the peer's on the same pairs**, with its 95 % interval and their number",
            tables.table(["", *(f"{a:g}°" for a in angles)], rows),
        ]
    return parts


def _summary(records) -> list:
    return [
        "**Brains from any pose**: OASIS-1 scans that were never trained on, the moving header turned about a random "
        "axis and shifted by 20 mm. Mean Dice of 32 structures; (n) where a method did fewer pairs than others.",
        tables.by_rotation(records, tables.mean_dice),
        *_beside(records),
        tables.cost(records),
        tables.FIGURE,
    ]


def sweep_panel(title: str):
    """A function: records → one panel of Dice against rotation, a line a method."""

    def panel(axis, records) -> None:
        for method in tables.methods(records):
            mine = tables.pick(records, method=method)
            angles = sorted({r["rotation"] for r in mine})
            values = [np.mean([r["dice"] for r in tables.pick(mine, rotation=a)]) for a in angles]
            tables.line(axis, method, angles, values)
        axis.set(xlabel="moving header turned by, degrees", ylabel="mean Dice", title=title, ylim=(0, None))
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
        axis.grid(alpha=0.3)

    return lambda records: [panel]


# --- head-and-neck CT --------------------------------------------------------------------------------------

#: Labels of the OpenKBP scans.
ORGANS = {
    1: "brainstem",
    2: "spinal cord",
    3: "right parotid",
    4: "left parotid",
    5: "esophagus",
    6: "larynx",
    7: "mandible",
}

#: Mean organ Dice below which a registration has failed. The organs are small: good ones reach about 0.4.
CT_ENOUGH = 0.2


def _ct(arguments: Arguments) -> list:
    return sweep(arguments, "ct", "openkbp", "ct", 20, (0, 45, 180), "ct-head-neck")


def _organs(arguments: Arguments):
    return measures.Overlap(ORGANS, CT_ENOUGH)


def _ct_section(records) -> list:
    count = len({r["case"] for r in records})
    return sweep_section(
        records,
        "Head-and-neck CT from turned headers",
        (
            f"Planning CTs of OpenKBP that no model was trained on, {count} pairs of different people; headers as "
            f"above. Mean Dice of the organs that both have, of seven; below {CT_ENOUGH:g} it has failed."
        ),
        CT_ENOUGH,
    )


def _ct_summary(records) -> list:
    return [
        "**Head-and-neck CT**: OpenKBP scans that were never trained on, headers as above. Mean Dice of seven organs, "
        f"and failures (mean below {CT_ENOUGH:g}) in %.",
        tables.by_rotation(records, lambda found: f"{tables.mean_dice(found)} · {tables.failed(found)} %"),
    ]


TASKS = (
    Task(
        "brains",
        "T1 brains with labelled structures, from turned headers",
        _brains,
        structures,
        _section,
        summary=_summary,
        panels=sweep_panel("Brains from any pose, 32 structures"),
        choices=("rotations", "pairs"),
    ),
    Task(
        "ct",
        "head-and-neck CTs with labelled organs, from turned headers",
        _ct,
        _organs,
        _ct_section,
        summary=_ct_summary,
        panels=sweep_panel("Head-and-neck CT, 7 organs"),
        choices=("rotations", "pairs"),
    ),
)
