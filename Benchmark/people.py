"""Whole heads of two people, and a whole head and another person's brain: does the brain end where it belongs?

Scalps, necks and faces differ more than brains and make up more than half of a head. What stands for the truth is a
consensus of peers that register the *stripped* scans from their own headers (people.json; made by ``python -m Benchmark
consensus --masks DIR``); the error counts over the brain. None of the scans was trained on.
"""
from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from SpatialDiffusionCore import geometry, volume

from . import measures, tables
from .cases import Arguments, Case, Task, Todo, data_root, field_center, pose, stem
from .contrast import PEERS, agree

CONSENSUS = Path(__file__).with_name("people.json")

#: Turns of the moving header.
ROTATIONS = (0.0, 90.0)

GROUPS = ("head on head", "brain on head", "head on brain")

#: Sources whose scans are stripped already.
STRIPPED = ("ds002748", "oasis")

#: The most pairs of a group.
MOST = 8


def choose(scans, masked) -> dict:
    """{group: pairs of files (moving, fixed)} of held-out scans. masked: whether a head has a mask."""
    heads = [p for p in scans if masked(p)]
    brains = [p for p in scans if stem(p).split("_")[0] in STRIPPED]
    half = len(heads) // 2
    mixed = [(brain, heads[-1 - i]) for i, brain in enumerate(brains)]
    return {"head on head": [(a, heads[(i + half) % len(heads)]) for i, a in enumerate(heads[:MOST])],
            "brain on head": mixed[0::2], "head on brain": [pair[::-1] for pair in mixed[1::2]]}


def _cases(arguments: Arguments) -> list:
    table = json.loads(CONSENSUS.read_text(encoding="utf-8")) if CONSENSUS.is_file() else {}
    folder = data_root(arguments.data) / "t1"
    todos = []
    for rotation in ROTATIONS if arguments.rotations is None else arguments.rotations:
        for name, entry in table.items():
            if entry["matrix"] is None or name.split("/")[0] not in (arguments.conditions or GROUPS):
                continue
            make = partial(_case, folder, name, rotation, arguments.seed, entry)
            todos.append(Todo(name, rotation, make))
    return todos


def _case(folder, name, rotation, seed, entry) -> Case:
    paths = [folder / f"{part}.nii.gz" for part in name.split("/")[1].split("-on-")]
    moved = pose(name, rotation, seed, field_center(paths[0]))
    linear = moved[:3, :3]
    return Case("people", name, rotation, seed, *paths, moved,
                truth=geometry.as_affine(entry["matrix"]) @ np.linalg.inv(moved),
                mean=geometry.transform_points(moved, np.array(entry["mean"])[None])[0],
                covariance=linear @ np.array(entry["covariance"]) @ linear.T)


# --- the consensus -----------------------------------------------------------------------------------------


def make_consensus(data, masks, python, path=CONSENSUS, log=None, report=print) -> None:
    """Ask the peers for every pair that the file lacks, stripped, and write it after each.

    masks: folder of brain masks of heads, named like their scans.
    """
    from SpatialDiffusionTraining.datasets import mask_of
    from SpatialDiffusionTraining.partners import stripped

    from .hard import held_out
    from .runner import Worker

    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    chosen = choose(sorted(held_out(data)), lambda scan: mask_of(scan, masks) is not None)
    workers = {name: Worker(name, python, 1, 1800, {}, log) for name in PEERS}
    with tempfile.TemporaryDirectory() as folder:
        for group, pairs in chosen.items():
            for pair in pairs:
                name = f"{group}/{'-on-'.join(stem(scan) for scan in pair)}"
                if name in table:
                    continue
                volumes = [stripped(scan, masks) for scan in pair]
                files = [Path(folder) / f"{stem(scan)}.nii" for scan in pair]
                for scan, file in zip(volumes, files):
                    volume.save(scan, file)
                case = Case("people", name, 0.0, 0, *files, np.eye(4))
                found = {peer: worker.register(case) for peer, worker in workers.items()}
                answers = {peer: np.array(a["matrix"]) for peer, a in found.items() if "matrix" in a}
                moving = volume.prepare(volumes[0])
                mean, covariance = moving.tissue_center, moving.tissue_covariance
                points = np.random.default_rng(0).multivariate_normal(mean, covariance, 2000)
                table[name] = {**agree(answers, points), "mean": np.round(mean, 3).tolist(),
                               "covariance": np.round(covariance, 3).tolist()}
                path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
                report(f"{name}: {table[name]['peers']}{'' if table[name]['matrix'] else ', no agreement'}")
    for worker in workers.values():
        worker.close()


# --- the report --------------------------------------------------------------------------------------------


def _tables(records) -> list:
    parts = []
    for rotation in sorted({r["rotation"] for r in records}):
        mine = tables.pick(records, rotation=rotation)
        parts += [f"The moving header turned by {rotation:g}°: median error in mm (95 %), share below 2 mm.",
                  tables.groups_down(mine, _figures, GROUPS)]
    return parts + [tables.cost(records)]


def _figures(found) -> str:
    below = 100 * np.mean([r.get("error_mm", np.inf) < 2.0 for r in found])
    return f"{tables.error(50)(found)} ({tables.error(95)(found)}) · {below:.0f} %"


def _section(records) -> list:
    return ["## Whole heads of two people",
            "T1 heads (IXI, ds000011) on heads, and on stripped brains of others (ds002748, OASIS-1), held out from "
            "training, as they are; error over the brain to the median of those of greedy, ANTs Affine and elastix on "
            "the stripped scans that agree within 3 mm.", *_tables(records)]


def _summary(records) -> list:
    return ["**Whole heads of two people**, and heads and stripped brains: T1 scans held out from training, nothing "
            "masked. Error over the brain to what peers agree on when given the stripped scans from the right pose.",
            *_tables(records)]


TASKS = (
    Task("people", "whole T1 heads and stripped brains of two people, judged over the brain", _cases,
         lambda arguments: measures.known, _section, summary=_summary,
         methods=("default", "no-network", "greedy", "elastix", "greedy-search")),
)
