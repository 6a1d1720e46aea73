"""Pairs of scans of phantom eyes on disk, with the transform between them (`python -m
SpatialDiffusionTraining.retina`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial.volume import Volume
from SpatialDiffusionCore.spatial.volume_file import save

from .. import command
from ..datasets import Report
from ..pair_lists import PARTNERS, partners_line
from .acquisition import draw_acquisition, true_transform
from .anatomy import make_eye
from .rendering import scan


def make_pair(
    seed: int, kind: str, graphs: Sequence[str | Path] = (), turn: float = 180.0, troubles: bool = True
) -> tuple[Volume, Volume, np.ndarray]:
    """(fixed, moving, fixed → moving 4×4) of two acquisitions of the eye of that seed."""
    random = np.random.default_rng([seed, 3])
    eye = make_eye(seed, graphs)
    first = draw_acquisition(random, kind, turn, troubles)
    second = draw_acquisition(random, kind, turn, troubles, near=first)
    return scan(eye, first, kind), scan(eye, second, kind), true_transform(first, second)


def find_graphs(folder: str | Path) -> list[Path]:
    """Vessel graph files of a folder ("" for none)."""
    if not folder:
        return []
    found = sorted(p for p in Path(folder).iterdir() if p.name.endswith((".csv", ".csv.gz")))
    if not found:
        raise InputError(f"{folder} holds no vessel graphs (*.csv, *.csv.gz).")
    return found


def write(
    folder: str | Path,
    kind: str,
    count: int,
    seed: int = 0,
    graphs: Sequence[str | Path] = (),
    turn: float = 180.0,
    report: Report = print,
    troubles: bool = True,
) -> Path:
    """Write ``count`` pairs (see make_pair) into ``folder``, and partners.tsv, which names pairs and transforms
    (datasets.py); its path.

    Pairs whose scans are there already are not made again.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(seed, seed + count):
        names = [f"{kind}{index:05d}_ses{n}.nii.gz" for n in (1, 2)]
        if not all((folder / name).exists() for name in names):
            *volumes, matrix = make_pair(index, kind, graphs, turn, troubles)
            for name, volume in zip(names, volumes):
                save(volume, folder / name)
        else:
            random = np.random.default_rng([index, 3])
            first = draw_acquisition(random, kind, turn, troubles)
            matrix = true_transform(first, draw_acquisition(random, kind, turn, troubles, near=first))
        lines.append(partners_line(names[0], names[1], matrix))
        if (index - seed + 1) % 20 == 0:
            report(f"made {index - seed + 1} of {count} pairs")
    path = folder / PARTNERS
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m SpatialDiffusionTraining.retina",
        description=(
            "Phantom eyes, each scanned twice: NIfTI files and partners.tsv (fixed, moving, 3×4 fixed → moving mm)."
        ),
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--count", type=int, default=10, metavar="N", help="pairs (default: 10)")
    parser.add_argument("--kind", choices=("oct", "octa"), default="oct")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="number of the first eye")
    parser.add_argument("--turn", type=float, default=180.0, metavar="DEG", help="largest turn of a raster")
    parser.add_argument("--no-troubles", dest="troubles", action="store_false", help="only speckle and a little motion")
    parser.add_argument("--graphs", default="", metavar="DIR", help="folder of vessel graphs (default: grown vessels)")
    chosen = parser.parse_args(argv)
    return command.run(
        "retina",
        lambda: write(
            chosen.out,
            chosen.kind,
            chosen.count,
            chosen.seed,
            find_graphs(chosen.graphs),
            chosen.turn,
            troubles=chosen.troubles,
        ),
    )
