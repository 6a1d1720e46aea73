"""Pairs of people for training: scans of one data set registered to one another by the default registration.

Two corruptions of one scan teach a network everything but how people differ. Here the core's own answers, refined by
self-similarity and kept only where they are called "good", say how two scans lie to each other, and training makes
pairs of them (see pair_lists.py). No labels are needed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from SpatialDiffusionCore import register
from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.files import written_whole
from SpatialDiffusionCore.spatial import geometry, volume, volume_file

from . import command
from .datasets import Report, mask_of
from .necks import read_points
from .pair_lists import partners_line
from .people import split
from .scans import find_scans


def choose(paths: Sequence[Path], each: int, seed: int = 0) -> list[tuple[Path, Path]]:
    """Pairs of `paths`: every one is the first of `each` pairs and the second of as many, no pair comes twice."""
    order = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]
    each = min(each, (len(paths) - 1) // 2)
    return [(first, order[(i + step) % len(order)]) for step in range(1, each + 1) for i, first in enumerate(order)]


def answer(task: tuple[Path, Path, str, str]) -> tuple[str, np.ndarray | None]:
    """(word of the quality, first → second 4×4 RAS mm) of two scans, or (the reason, None); runs in a worker."""
    first, second, modality, masks = task
    torch.set_num_threads(1)
    try:
        found = register(stripped(second, masks), stripped(first, masks), modality=modality, device="cpu")
    except InputError as error:
        return str(error), None
    return found.quality.confidence, geometry.inverse(found.matrix)


def stripped(path: str | Path, masks: str | Path) -> volume.Volume:
    """The scan, black outside its mask where the folder `masks` has one."""
    scan, mask = volume_file.load(path), mask_of(path, masks)
    if mask is None:
        return scan
    inside = volume.resample(volume_file.load(mask), scan, interpolation="nearest").data != 0
    return volume.Volume(np.where(inside, scan.data, 0), scan.voxel_to_ras, scan.name)


def apart(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> float:
    """Largest distance in mm between the points of the second scan (N×3) and those of the first where `matrix` (4×4)
    takes them."""
    return float(np.linalg.norm(geometry.transform_points(matrix, first) - second, axis=1).max())


def write(
    scans: str | Path,
    modality: str,
    output: str | Path,
    each: int = 3,
    masks: str = "",
    held_out: float = 0.1,
    workers: int = 1,
    seed: int = 0,
    report: Report = print,
    points: str = "",
    within: float = 15.0,
) -> Path:
    """Write the list of the pairs of `scans` (folder, list file) that are registered well; returns its path.

    points: file of points marked in the scans (see necks.read_points); then a pair is registered well where they come
    to lie within so many mm, whatever the registration says of itself, and scans without points are left out.

    Pairs stay on one side of the split that training makes with the same `held_out`. What a list already holds from an
    earlier, interrupted call is kept. masks: folder of brain masks named like their scans; brains fit each other more
    surely than scalps and necks. Raises InputError where there are fewer than three scans.
    """
    output = Path(output)
    paths = find_scans(scans)
    marked = read_points(points) if points else None
    if marked is not None:
        paths = [path for path in paths if path.name in marked]
    parts = split(paths, held_out)
    sides = parts.train, parts.held_out
    tasks = [(*pair, modality, masks) for side in sides for pair in choose(side, each, seed)]
    if not tasks:
        raise InputError(f"{scans} holds {len(paths)} scans, too few to pair people.")
    output.parent.mkdir(parents=True, exist_ok=True)
    done = output.with_name(output.name + ".part")
    folder = output.parent.resolve()
    lines = _lines(done)
    known = {tuple(text.split("\t")[:2]) for text in lines if text.endswith("\n")}
    left = [t for t in tasks if tuple(os.path.relpath(path, folder) for path in t[:2]) not in known]
    with open(done, "w", encoding="utf-8") as file, ProcessPoolExecutor(workers) as pool:
        file.writelines(text for text in lines if text.endswith("\n"))
        for number, (task, (word, matrix)) in enumerate(zip(left, pool.map(answer, left)), start=1):
            # A pair without numbers was tried and is not good.
            names = os.path.relpath(task[0], folder), os.path.relpath(task[1], folder)
            fits = matrix is not None and _fits(task, word, matrix, marked, within)
            file.write(partners_line(*names, matrix) if fits and matrix is not None else "\t".join(names) + "\t\n")
            file.flush()
            if number % 20 == 0 or number == len(left):
                report(f"registered {number} of {len(left)} pairs")
    good = [text for text in _lines(done) if len(text.split("\t")) == 14]
    if not good:
        raise InputError(
            f"None of the {len(tasks)} pairs was registered well; check that all of {scans} shows the "
            "same part of the body."
        )
    with written_whole(output) as temporary:
        Path(temporary).write_text("".join(good), encoding="utf-8")
    done.unlink()
    report(f"{len(good)} of {len(tasks)} pairs are good")
    return output


def _fits(
    task: tuple[Path, Path, str, str],
    word: str,
    matrix: np.ndarray,
    marked: dict[str, np.ndarray] | None,
    within: float,
) -> bool:
    """Whether two scans were registered well: by their marked points where there are some, else by its own word."""
    if marked is None:
        return word == "good"
    first, second = (marked[Path(path).name] for path in task[:2])
    return apart(first, second, matrix) <= within


def _lines(file: Path) -> list[str]:
    """The lines of a file with their ends; none where there is no file."""
    return file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m SpatialDiffusionTraining.partners",
        description=(
            "Register scans of different people to one another and list those that fit, for --partners of training."
        ),
    )
    parser.add_argument("--train", required=True, metavar="SCANS", help="folder of scans or text list, as for training")
    parser.add_argument("--dataset", default="any", metavar="MODALITY")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE.tsv",
        help="a partners.tsv beside the scans is found by itself, any other is given as --partners",
    )
    parser.add_argument(
        "--each",
        type=int,
        default=3,
        metavar="N",
        help="partners of every scan (default: 3; as many scans have it for a partner)",
    )
    parser.add_argument("--masks", default="", metavar="DIR", help="as for training; scans are registered inside")
    parser.add_argument(
        "--points",
        default="",
        metavar="FILE.tsv",
        help="points marked in the scans (name and x y z of "
        "each, RAS mm): pairs are kept where these fit, not where the registration says it is good",
    )
    parser.add_argument("--within", type=float, default=15.0, metavar="MM", help="to so many mm (default: 15)")
    parser.add_argument("--held-out", type=float, default=0.1, metavar="SHARE", help="as for training (default: 0.1)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    chosen = parser.parse_args(argv)
    return command.run(
        "partners",
        lambda: write(
            chosen.train,
            chosen.dataset,
            chosen.output,
            chosen.each,
            chosen.masks,
            chosen.held_out,
            chosen.workers,
            report=command.say,
            points=chosen.points,
            within=chosen.within,
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
