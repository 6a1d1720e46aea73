"""A group of brains: Dice of pairs by way of the common space beside direct ones, and planted wrong pairs.

``python -m Benchmark group --data DIR --out RESULTS [--subjects N] [--jobs N]`` registers all pairs of the first N
OASIS-1 scans of ``bench`` and writes RESULTS/group.json and group.md. Then a ninth of the answers (five of 45) are
replaced by wrong ones, turned by 12 to 180° about the tissue, in ten draws.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.many import averaging
from SpatialDiffusionCore.many.group import group_steps
from SpatialDiffusionCore.registration import run_steps
from SpatialDiffusionCore.spatial import geometry, volume_file
from SpatialDiffusionCore.spatial.sampling import prepare

from . import measures

DRAWS, WRONG_SHARE = 10, 5 / 45


def measured(data: Path, count: int, jobs: int | None) -> dict:
    """Dice of each pair, direct and by way of the group, and how many planted wrong pairs are found."""
    scans = sorted((data / "bench").glob("oasis_*_t1.nii.gz"))[:count]
    overlap = measures.Overlap(measures.read_groups(data / "oasis_labels.tsv"), 0.45)
    labels = [str(scan).replace("_t1.nii.gz", "_labels.nii.gz") for scan in scans]
    begun = time.perf_counter()
    steps = group_steps([str(scan) for scan in scans], jobs=jobs, modality="t1-brain")
    result = run_steps(steps, lambda step: print(f"{step.index} of {step.count}", flush=True))
    seconds = time.perf_counter() - begun

    def dice(i: int, j: int, matrix: np.ndarray) -> float:
        return overlap.dice((labels[i], labels[j]), np.eye(4), matrix)

    rows = [
        {
            "moving": scans[i].name,
            "fixed": scans[j].name,
            "confidence": answer.confidence,
            "direct": dice(i, j, answer.matrix),
            "group": dice(i, j, result.between(i, j)),
            "disagreement_mm": result.disagreement[i, j],
            "dropped": (i, j) in result.dropped,
        }
        for (i, j), answer in sorted(result.pairs.items())
    ]
    prepared = [prepare(volume_file.load(scan)) for scan in scans]
    clouds = [averaging.Cloud(one.tissue_center, one.tissue_covariance) for one in prepared]
    found = [planted(result.pairs, clouds, seed) for seed in range(DRAWS)]
    return {"seconds": seconds, "cycle_error_mm": result.cycle_error.tolist(), "pairs": rows, "planted": found}


def planted(answers: dict, clouds: list, seed: int) -> dict:
    """Wrong pairs put among right ones: how many there are, how many were found, and right ones that were dropped."""
    random, known = np.random.default_rng(seed), sorted(answers)
    chosen = random.choice(len(known), max(1, round(WRONG_SHARE * len(known))), replace=False)
    wrong = {known[k] for k in chosen}
    pairs = {}
    for pair in known:
        answer = answers[pair]
        if pair in wrong:
            turn = geometry.rotation_about(random.normal(size=3), np.radians(random.choice([12, 25, 60, 120, 180])))
            answer = replace(answer, matrix=geometry.about(turn, clouds[pair[1]].mean) @ answer.matrix)
        pairs[pair] = answer.matrix
    dropped = set(averaging.consensus(pairs, clouds).dropped)
    return {"planted": len(wrong), "found": len(wrong & dropped), "right_dropped": len(dropped - wrong)}


def table(found: dict) -> str:
    """Markdown."""
    direct, group = (np.array([row[key] for row in found["pairs"]]) for key in ("direct", "group"))
    wrong, caught, lost = (sum(one[key] for one in found["planted"]) for key in ("planted", "found", "right_dropped"))
    return (
        "| pairs | Dice, direct | Dice, by way of the group | worst, direct | worst, group | wrong pairs found | right "
        "pairs dropped |\n|---|---|---|---|---|---|---|\n"
        f"| {len(direct)} | {direct.mean():.3f} | {group.mean():.3f} | {direct.min():.3f} | {group.min():.3f} | "
        f"{caught} of {wrong} | {lost} of {len(direct) * len(found['planted']) - wrong} |\n"
    )


def add_command(commands: Any) -> None:
    """Put ``group`` among the benchmark's commands."""
    parser = commands.add_parser("group", help="Dice by way of a group's space, and planted wrong pairs")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="folder with bench/, oasis_labels.tsv")
    parser.add_argument("--out", required=True, type=Path, metavar="RESULTS")
    parser.add_argument("--subjects", type=int, default=10, metavar="N", help="the first N scans (default: 10)")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes of one thread each")


def run(arguments: argparse.Namespace) -> None:
    """Carry it out."""
    found = measured(arguments.data, arguments.subjects, arguments.jobs)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "group.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "group.md").write_text(table(found))
    print(table(found))
