"""Brain masks for training (--masks) without labels: one head's mask, carried to all others by registration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from SpatialDiffusionCore import register
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import volume, volume_file

from . import command
from .datasets import Report
from .scans import find_scans


def carry(task: tuple[str, str, str, str, str]) -> str:
    """Write the mask of one scan; returns the word of the registration's quality, or why there is none."""
    scan, template, mask, modality, output = task
    torch.set_num_threads(1)
    try:
        fixed = volume_file.load(scan)
        found = register(volume_file.load(template), fixed, modality=modality, device="cpu")
    except InputError as error:
        return str(error)
    if found.quality.confidence != "poor":
        brain = volume_file.load(mask)
        inside = volume.Volume((brain.data > 0).astype(np.uint8), brain.voxel_to_ras, brain.name)
        volume_file.save(volume.resample(inside, fixed, found.matrix, "nearest"), output)
    return found.quality.confidence


def write(
    scans: str | Path,
    template: str | Path,
    mask: str | Path,
    output: str | Path,
    modality: str = "t1-brain",
    workers: int = 1,
    report: Report = print,
) -> int:
    """Masks of all scans (folder or list), named like them, in the folder `output`; existing ones are kept.

    template: a head of the same kind; mask: a volume in its space, above 0 inside. Scans whose registration is poor get
    none. Returns the number of masks.
    """
    output = Path(output)
    tasks = [
        (str(scan), str(template), str(mask), modality, str(output / scan.name))
        for scan in find_scans(scans)
        if not (output / scan.name).exists()
    ]
    output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        for number, (task, word) in enumerate(zip(tasks, pool.map(carry, tasks)), start=1):
            if not Path(task[-1]).exists():
                report(f"no mask for {task[0]}: {word}")
            if number % 20 == 0 or number == len(tasks):
                report(f"registered {number} of {len(tasks)} scans")
    return len(list(output.glob("*.nii*")))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m SpatialDiffusionTraining.masks",
        description=("Carry one head's brain mask to all scans, for --masks of training. Look at some of them."),
    )
    parser.add_argument("--train", required=True, metavar="SCANS", help="folder of whole heads or text list")
    parser.add_argument("--template", required=True, metavar="HEAD", help="a head of the same kind")
    parser.add_argument("--mask", required=True, metavar="MASK", help="in its space, above 0 inside")
    parser.add_argument("--dataset", default="t1-brain", metavar="MODALITY")
    parser.add_argument("-o", "--output", required=True, metavar="DIR")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    chosen = parser.parse_args(argv)

    def work() -> str:
        for path in (chosen.template, chosen.mask):
            if not Path(path).is_file():
                raise InputError(f"{path} does not exist.")
        count = write(
            chosen.train,
            chosen.template,
            chosen.mask,
            chosen.output,
            chosen.dataset,
            chosen.workers,
            report=command.say,
        )
        return f"{count} masks in {chosen.output}"

    return command.run("masks", work)


if __name__ == "__main__":
    raise SystemExit(main())
