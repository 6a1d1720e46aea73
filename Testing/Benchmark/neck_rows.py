"""``python -m Benchmark necks``: answers between the necks of two people, from which the agreement is calibrated.

Case "P/neck-ct/MOVING-FIXED/DRAW": head-and-neck CTs that may calibrate (subjects.py), the moving header turned in each
draw. Nobody knows the true affine between two necks; what most draws of a pair come to, from headers that have nothing
in common, is taken for it, if the network surely agrees with it, too (from the model card's figure on): else nobody
knows. That is a weaker truth than that of copies.
"""

from __future__ import annotations

import argparse
import time
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.spatial import geometry, volume_file
from SpatialDiffusionCore.spatial.sampling import Prepared, prepare

from . import anatomy_run, subjects
from .cases import data_root, rng

#: Headers of a pair: as it is, and turned by so many degrees.
TURNS = (0.0, 75.0, 150.0)

#: Shares of the size: up to the first two answers agree, beyond the second one is wrong.
LIMITS = (0.02, 0.05)

#: The network's agreement from which an answer is right, by the card of the bundled model (``agreement``).
SURE = 0.8


def add_command(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser("necks", help="register necks of two people, whose answers calibrate the agreement")
    parser.add_argument("--data", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="one line an answer; goes on where it was")
    parser.add_argument("--pairs", type=int, default=12, metavar="N")


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says."""
    out = Path(arguments.out)
    done = anatomy_run.read(out)
    able = [s for s in subjects.read() if s.collection == "neck-ct" and s.calibrates]
    for moving, fixed in list(permutations(able, 2))[: arguments.pairs]:
        name = f"P/neck-ct/{moving.name}-{fixed.name}"
        if f"{name}/0" not in done:
            for record in judged(name, *(data_root(arguments.data) / s.path for s in (moving, fixed))):
                anatomy_run.append(out, record)
                print(anatomy_run.line(record), flush=True)


def judged(name: str, moving_path: Path, fixed_path: Path) -> list[dict]:
    """The records of all draws of a pair."""
    from SpatialDiffusionCore import register

    moving, fixed = volume_file.load(moving_path), volume_file.load(fixed_path)
    tissue, random = prepare(fixed), rng("neck rows", name, 0)
    records, answers = [], []
    for draw, degrees in enumerate(TURNS):
        turn = geometry.rotation_about(random.normal(size=3), np.radians(degrees))
        moved = geometry.about(turn, moving.center(), degrees / 2 * random.normal(size=3))
        cpu = time.process_time()
        result = register(moving.moved(moved), fixed, modality="ct-head-neck", device="cpu")
        answers.append(np.linalg.inv(result.matrix @ moved))
        quality = result.quality.to_dict()
        records.append({
            "case": f"{name}/{draw}", "code": anatomy_run.code_hash(), "degrees": degrees,
            "word": quality["confidence"], "probability": quality["probability"], "size_mm": round(tissue.size, 3),
            "seconds": round(result.seconds, 3), "cpu_seconds": round(time.process_time() - cpu, 3),
            "modality": ["ct-head-neck"] * 2, "quality": quality,
        })  # fmt: skip
    for record, answer in zip(records, answers):
        record.update(verdict(answer, answers, tissue))
    sure = [r["quality"]["agreement"] >= SURE for r in records if r["success"]]
    if not any(sure):
        for record in records:
            record.update(success=False, wrong=False)
    return records


def verdict(answer: np.ndarray, answers: list, tissue: Prepared) -> dict:
    """Whether an answer is what most come to; its error is the distance from the nearest one of those."""
    apart = np.array([
        [geometry.displacement_rms(a, b, tissue.tissue_center, tissue.tissue_covariance) for b in answers]
        for a in answers
    ]) / tissue.size  # fmt: skip
    agreeing = (apart <= LIMITS[0]).sum(1)
    if agreeing.max() < 2:
        return {"error_share": 1.0, "success": False, "wrong": False}
    middle = answers[int(agreeing.argmax())]
    off = geometry.displacement_rms(answer, middle, tissue.tissue_center, tissue.tissue_covariance) / tissue.size
    return {"error_share": round(off, 5), "success": bool(off <= LIMITS[0]), "wrong": bool(off > LIMITS[1])}
