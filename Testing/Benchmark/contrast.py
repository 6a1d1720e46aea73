"""One head in two contrasts, from any pose: co-registered templates, and raw scans of one person.

Raw scans have no known transform. What stands for it is a consensus of peers that converge from the scans' own headers
(consensus.json; made by ``python -m Benchmark consensus``).
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry, sampling, volume_file

from . import measures, tables
from .cases import Arguments, Case, Task, Todo, any_pose, data_root, field_center, groups_of, rng
from .child import Worker

#: group → pairs of files that lie in one space.
TEMPLATES = {
    "T1-T2": [
        ("templates/mni152_t1_2mm", "templates/mni152_t2_2mm"),
        ("templates/mni152_t1_brain_1mm", "templates/mni152_t2_2mm"),
    ],
    "T1-PD": [
        ("templates/mni152_t1_2mm", "templates/avg152_pd_2mm"),
        ("templates/mni152_t1_brain_1mm", "templates/avg152_pd_2mm"),
    ],
    "head-brain": [
        ("templates/mni152_t1_2mm", "templates/mni152_t1_brain_1mm"),
        ("templates/colin27_t1", "templates/colin27_t1_brain"),
    ],
}

#: group → pairs of one person's raw scans, and of templates that were made of different people.
RAW = {
    "raw T1-T2": [
        (f"multi/{s}_t1", f"multi/{s}_t2") for s in ("openms_01_study1", "openms_01_study2", "openms_03_study2", "adi")
    ],
    "raw T1-FLAIR": [
        (f"multi/{s}_t1", f"multi/{s}_flair") for s in ("openms_01_study1", "openms_01_study2", "openms_03_study2")
    ],
    "raw visits": [
        ("multi/openms_01_study1_t1", "multi/openms_01_study2_t1"),
        ("multi/openms_01_study1_t1", "multi/openms_01_study2_t2"),
        ("multi/openms_03_study2_t1", "multi/openms_03_study1_t2"),
        ("multi/openms_03_study2_t1", "multi/openms_03_study1_flair"),
    ],
    "T1-CT": [("templates/mni152_t1_2mm", "templates/ct_head_2mm"), ("templates/colin27_t1", "templates/ct_head_2mm")],
}

CONSENSUS = Path(__file__).with_name("consensus.json")

#: The peers that are asked, and how far from their median (mm over the head) one may be to count as converged.
PEERS, AGREE = ("greedy", "ants-affine", "elastix"), 3.0


def _modality(path: str) -> str:
    name = os.path.basename(path)
    for part, key in (("_t1", "t1-brain"), ("_t2", "t2-head-neck"), ("ct_", "ct-head-neck")):
        if part in name:
            return key
    return "any"


def pair_name(first: str, second: str) -> str:
    """Name of a pair of files."""
    return f"{os.path.basename(first)}-{os.path.basename(second)}"


def known(first: str, second: str, table: dict):
    """4×4 first → second RAS under the files' own headers; None where the peers did not agree."""
    if any((first, second) in pairs for pairs in TEMPLATES.values()):
        return np.eye(4)
    entry = table.get(pair_name(first, second))
    return None if entry is None or entry["matrix"] is None else geometry.as_affine(entry["matrix"])


def _cases(arguments: Arguments) -> list:
    """Draw by draw, the direction alternating; only pairs with a known or agreed transform."""
    root, seed = data_root(arguments.data), arguments.seed
    table = json.loads(CONSENSUS.read_text(encoding="utf-8")) if CONSENSUS.is_file() else {}
    groups = {**TEMPLATES, **RAW}
    todos = []
    for number in range(arguments.draws or 4):
        for group in groups_of(arguments, groups):
            for first, second in groups[group]:
                truth = known(first, second, table)
                if truth is None:
                    continue
                moving, fixed = (first, second) if number % 2 == 0 else (second, first)
                truth = truth if number % 2 == 0 else np.linalg.inv(truth)
                name = f"{group}/{pair_name(moving, fixed)}/{number}"
                degrees, moved = any_pose(rng("contrast", pair_name(first, second), seed, number))
                make = partial(_case, root, name, round(degrees, 1), seed, moving, fixed, truth, moved)
                todos.append(Todo(name, round(degrees, 1), make))
    return todos


def _case(root, name, degrees, seed, moving, fixed, truth, moved) -> Case:
    paths = [root / f"{path}.nii.gz" for path in (moving, fixed)]
    moved = moved(field_center(paths[0]))
    prepared = sampling.prepare(volume_file.load(paths[0]).moved(moved))
    return Case(
        "contrast",
        name,
        degrees,
        seed,
        *paths,
        moved,
        truth=truth @ np.linalg.inv(moved),
        mean=prepared.tissue_center,
        covariance=prepared.tissue_covariance,
        modality=(_modality(moving), _modality(fixed)),
    )


# --- the consensus -----------------------------------------------------------------------------------------


def median(matrices, points) -> np.ndarray:
    """The affine that fits the coordinate-wise median of where 4×4 transforms take N×3 points."""
    images = np.median([geometry.transform_points(m, points) for m in matrices], axis=0)
    return geometry.fit(points, images)


def agree(answers: dict, points) -> dict:
    """{"matrix": 3×4 or None, "peers": distance in mm of each from the median of those that agree} for {peer: 4×4}.

    Peers further than AGREE from the median of all are left out of the final median; at least two must remain.
    """
    mean, covariance = points.mean(0), np.cov(points.T, bias=True)

    def distances(center):
        return {name: geometry.displacement_rms(m, center, mean, covariance) for name, m in answers.items()}

    center = median(list(answers.values()), points)
    near = [name for name, distance in distances(center).items() if distance < AGREE]
    if len(near) >= 2:
        center = median([answers[name] for name in near], points)
    apart = {name: round(distance, 2) for name, distance in distances(center).items()}
    matrix = [[round(v, 6) for v in row] for row in center[:3].tolist()] if len(near) >= 2 else None
    return {"matrix": matrix, "peers": apart}


def make_consensus(data, python, path=CONSENSUS, log=None, report=print, pairs=None, peers=PEERS) -> None:
    """Ask the peers for every pair (of RAW, or of those given) that the file lacks, and write it after each."""
    root = data_root(data)
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    workers = {name: Worker(name, python, 1, 1800, {}, log) for name in peers}
    for first, second in pairs or (pair for group in RAW.values() for pair in group):
        name = pair_name(first, second)
        if name in table:
            continue
        paths = [root / f"{p}.nii.gz" for p in (first, second)]
        case = Case("contrast", name, 0.0, 0, *paths, np.eye(4))
        found = {peer: worker.register(case) for peer, worker in workers.items()}
        answers = {peer: np.array(a["matrix"]) for peer, a in found.items() if "matrix" in a}
        if len(answers) < 2:
            raise InputError(f"Of the peers {', '.join(peers)} fewer than two answered for {name}: {found}")
        prepared = sampling.prepare(volume_file.load(paths[0]))
        points = np.random.default_rng(0).multivariate_normal(prepared.tissue_center, prepared.tissue_covariance, 2000)
        table[name] = agree(answers, points)
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        report(f"{name}: {table[name]['peers']}{'' if table[name]['matrix'] else ', no agreement'}")
    for worker in workers.values():
        worker.close()


# --- the report --------------------------------------------------------------------------------------------


def _section(records) -> list:
    order = (*TEMPLATES, *RAW)
    return [
        "## Contrasts",
        "One head in two contrasts, the moving header turned by up to 180° and shifted by up to 50 mm: templates in "
        "one space (the PD template lies about 1 mm off the T1 one), and raw scans of one person and a CT template, "
        f"judged by the median of those of greedy, ANTs Affine and elastix that agree within {AGREE:g} mm, with "
        "unturned headers. Error: RMS distance over the head. A success is below 5 mm.",
        "**Median error, mm**",
        tables.by_group(records, tables.error(50), order),
        "**Success, %**",
        tables.by_group(records, tables.success, order),
        "**Time and memory, one registration**",
        tables.cost(records),
    ]


def _summary(records) -> list:
    order = (*TEMPLATES, *RAW)
    return [
        "**Other contrasts**: one head in two of them, the moving header turned by up to 180° and shifted by up to "
        "50 mm. Templates in one space; raw scans of one person, and T1 against a CT template, by a consensus of the "
        "peers. Success (< 5 mm) in %, median error in mm.",
        tables.groups_down(records, tables.rate_and_median, order),
        tables.cost(records),
    ]


TASKS = (
    Task(
        "contrast",
        "T1, T2, PD, FLAIR, with and without skull, from any pose",
        _cases,
        lambda arguments: measures.known,
        _section,
        summary=_summary,
        methods=("default", "no-network", "greedy-search", "elastix"),
        choices=("conditions", "draws"),
    ),
)
