"""Masks of the neck for the focus of head-and-neck CT, from two points marked in each scan.

Planning CTs show a neck alone or all from head to chest, and chins, shoulders and backs lie differently each time. What
they have in common lies before the cervical spine. ``necks.tsv`` marks, for scans of OpenKBP by the name of the file,
the top of the dens and the middle of the spine some 110 mm below it, read off pictures of the middle slice to about 5
mm.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from SpatialDiffusionCore.errors import InputError
from SpatialDiffusionCore.spatial import geometry, volume, volume_file

from . import command
from .datasets import Report
from .scans import find_scans, write_list

POINTS = Path(__file__).with_name("necks.tsv")

#: The box about the line from the dens (0) down the spine, mm: along it, forward of it, and to either side.
ALONG, FORWARD, ASIDE = (-40.0, 120.0), (-40.0, 90.0), 60.0


def read_points(path: str | Path) -> dict[str, np.ndarray]:
    """{name of a scan: 2×3, RAS mm} from lines of a name and six numbers, separated by tabs."""
    points = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        name, *values = line.split("\t")
        try:
            points[name] = np.array(values, float).reshape(2, 3)
        except ValueError:
            raise InputError(f"{path}, line {number}: expected a name and six numbers, separated by tabs.") from None
    return points


def inside(points: np.ndarray, dens: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Which RAS points (N×3, mm) lie in the box of a neck whose dens and lower spine are given."""
    down = (below - dens) / np.linalg.norm(below - dens)
    forward = np.array([0.0, 1.0, 0.0]) - down[1] * down
    forward /= np.linalg.norm(forward)
    axes = np.array([down, forward, np.cross(down, forward)])
    along, ahead, aside = ((points - dens) @ axes.T).T
    return (
        (along > ALONG[0]) & (along < ALONG[1]) & (ahead > FORWARD[0]) & (ahead < FORWARD[1]) & (np.abs(aside) < ASIDE)
    )


def write(scans: str | Path, points: str | Path, output: str | Path, report: Report = print) -> list[Path]:
    """Write the masks of the scans (folder or list) that have points into the folder ``output``; the scans masked."""
    known, output = read_points(points), Path(output)
    chosen = [path for path in find_scans(scans) if path.name in known]
    if not chosen:
        raise InputError(f"{points} names none of the scans of {scans}.")
    output.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        scan = volume_file.load(path)
        places = geometry.transform_points(scan.voxel_to_ras, np.indices(scan.shape).reshape(3, -1).T)
        mask = inside(places, *known[path.name]).reshape(scan.shape).astype(np.uint8)
        volume_file.save(volume.Volume(mask, scan.voxel_to_ras, scan.name), output / path.name)
    write_list(chosen, output / "scans.txt")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m SpatialDiffusionTraining.necks",
        description=(
            "Boxes about the necks of CTs, for the focus of training, and scans.txt, the list of the "
            "scans that have one."
        ),
    )
    parser.add_argument("--train", required=True, metavar="SCANS", help="folder of scans or text list")
    parser.add_argument(
        "--points",
        default=str(POINTS),
        metavar="FILE.tsv",
        help="name, dens and lower spine (x y z each, RAS mm) of each scan (default: those of OpenKBP)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR")
    chosen = parser.parse_args(argv)
    return command.run(
        "necks", lambda: f"{len(write(chosen.train, chosen.points, chosen.output))} masks in {chosen.output}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
