"""``python -m Benchmark eyes``: answers on phantom eyes, from which scans of eyes are calibrated.

Case "E/oct-fine/eye_70001-eye_70001/0": two scans of an eye; of two eyes in X cases, where nothing is right. The
rasters: "fine" as acquisitions are drawn in training; "lines" a few lines far apart, in orthogonal rasters, as clinics
scan. Eyes from FIRST_EYE on are in no table and no training.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from SpatialDiffusionCore.spatial import geometry
from SpatialDiffusionCore.spatial.sampling import prepare

from . import anatomy_run
from .cases import rng

#: Phantom eyes that calibrate.
FIRST_EYE = 70_000

#: Right and wrong, as for other copies: shares of the size, or half the coarsest voxel.
LIMITS = (0.01, 0.03)


def add_command(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser("eyes", help="register phantom eyes, whose answers calibrate scans of eyes")
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="one line an answer; goes on where it was")
    parser.add_argument("--eyes", type=int, default=16, metavar="N", help="of each modality and raster")


def cases(count: int) -> Iterator[tuple]:
    """(name, modality, raster, fixed eye, moving eye): two of three pairs show one eye, the third two."""
    for number in range(count):
        for kind in ("oct", "octa"):
            for raster in ("fine", "lines"):
                eye, other = FIRST_EYE + number, FIRST_EYE + (number + 1) % count
                same = f"E/{kind}-{raster}/eye_{eye}-eye_{eye}/0"
                yield same, kind, raster, eye, eye
                if number % 2:
                    yield f"X/{kind}-{raster}/eye_{other}-eye_{eye}/0", kind, raster, eye, other


def acquisitions(name: str, kind: str, raster: str) -> tuple:
    """(fixed, moving) acquisitions, which belong to the name."""
    from SpatialDiffusionTraining import retina

    random = rng("eye rows", name, 0)
    fixed = retina.draw_acquisition(random, kind, turn=20.0, troubles=False)
    moving = retina.draw_acquisition(random, kind, troubles=False, near=fixed)
    if raster == "lines":
        lines = int(random.integers(25, 62))
        fixed = replace(fixed, shape=(fixed.shape[0], lines, fixed.shape[2]))
        moving = replace(
            moving,
            shape=(moving.shape[0], lines, moving.shape[2]),
            turn=fixed.turn + 90.0 * float(random.choice([-1, 1])) + float(random.uniform(-4, 4)),
        )
    return fixed, moving


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says."""
    out = Path(arguments.out)
    done = anatomy_run.read(out)
    for name, *what in cases(arguments.eyes):
        if name not in done:
            record = answer(name, *what)
            anatomy_run.append(out, record)
            print(anatomy_run.line(record), flush=True)


def answer(name: str, kind: str, raster: str, eye: int, other: int) -> dict:
    """Scan, register and judge one case."""
    from SpatialDiffusionCore import register
    from SpatialDiffusionTraining import retina

    first, second = acquisitions(name, kind, raster)
    fixed = retina.scan(retina.make_eye(eye), first, kind)
    moving = retina.scan(retina.make_eye(other), second, kind)
    cpu = time.process_time()
    result = register(moving, fixed, modality=kind, device="cpu")
    cpu = time.process_time() - cpu
    tissue = prepare(fixed)
    truth = np.linalg.inv(retina.true_transform(second, first))
    error = geometry.displacement_rms(
        np.linalg.inv(result.matrix), truth, tissue.tissue_center, tissue.tissue_covariance
    )
    coarsest = max(fixed.spacing.max(), moving.spacing.max())
    right = max(LIMITS[0] * tissue.size, coarsest / 2)
    hopeless = name.startswith("X/")
    quality = result.quality.to_dict()
    return {
        "case": name,
        "code": anatomy_run.code_hash(),
        "word": quality["confidence"],
        "probability": quality["probability"],
        "error_mm": round(error, 4),
        "error_share": round(error / tissue.size, 5),
        "size_mm": round(tissue.size, 3),
        "success": bool(not hopeless and error <= right),
        "wrong": bool(hopeless or error > max(right, LIMITS[1] * tissue.size)),
        "seconds": round(result.seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "modality": [kind, kind],
        "quality": quality,
    }
