"""``spatial-diffusion motion``: lay the frames of a series on each other."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .parser import PROGRAM, Commands, UsageError, add_command
from .progress import Progress

if TYPE_CHECKING:
    from ..many.motion import SeriesRegistration

MOTION = """\
Finds the rigid motion of every frame of SERIES (a 4D file, a folder of volumes, a folder of DICOM files) and writes
into a folder: the corrected series, interpolated once; its mean; the transforms for ITK, FSL and AFNI; a table with
BIDS names and framewise displacement; a plot; and which frames are doubtful. What is there already, by content and
settings, is not done again.
"""

MOTION_EXAMPLES = """\
EXAMPLES
  spatial-diffusion motion sub-01_task-rest_bold.nii.gz -o motion/
  spatial-diffusion motion dicom_folder/ -o motion/ --reference 0
  Diffusion-weighted, with eddy currents:
    spatial-diffusion motion sub-01_dwi.nii.gz -o motion/ --transform affine
"""


def add_parser(commands: Commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(commands, "motion", "lay the frames of a series on each other", MOTION, MOTION_EXAMPLES)
    parser.add_argument("series", metavar="SERIES", help="4D file, folder of volumes, or folder of DICOM files")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for what is written")
    parser.add_argument(
        "--reference", type=int, metavar="N", help="frame (from 0) that stays (default: the one most like the others)"
    )
    parser.add_argument(
        "--transform",
        default="rigid",
        metavar="KIND",
        choices=("rigid", "similarity", "affine"),
        help="rigid, similarity or affine (default: rigid)",
    )
    parser.add_argument("--mask", metavar="FILE", help="only where this is not 0, on the voxels of the series")
    parser.add_argument(
        "--jobs", metavar="N|ADDRESS", help="processes, or a Dask scheduler (default: as many as are worth it)"
    )
    parser.add_argument("--review", metavar="DIR", help="folder for a page to look at the frames, see register --help")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the points drawn (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    if arguments.reference is not None and arguments.reference < 0:
        raise UsageError(f"--reference must be 0 or more, got {arguments.reference}.")
    from ..many.frames import open_series
    from ..many.motion import check, processes_for, register_series
    from ..many.motion_files import write_all
    from ..many.record import begin, content_key, holds, mark_folder
    from ..spatial.volume_file import load
    from .outputs import prepared_page

    settings = {name: getattr(arguments, name) for name in ("reference", "transform", "seed")}
    key = content_key([arguments.series, arguments.mask], {"command": "motion", **settings})
    page = prepared_page(arguments.review)
    if holds(arguments.output, key, page):
        if not arguments.quiet:
            print(f"{arguments.output} holds this already; nothing to do.")
        return 0
    # Beside the output, where there is room for as much again.
    series = open_series(arguments.series, scratch=os.path.dirname(os.path.abspath(arguments.output)))
    mask = load(arguments.mask) if arguments.mask else None
    check(series, settings["reference"], mask)
    begin(arguments.output, key, f"motion of {series.name}")
    for words in series.warnings:
        print(f"{PROGRAM}: warning: {words}", file=sys.stderr)
    jobs = processes_for(series) if arguments.jobs is None else arguments.jobs
    progress = Progress(arguments.quiet or not sys.stderr.isatty())
    try:
        result = register_series(series, mask=mask, jobs=jobs, on_step=progress, **settings)
    finally:
        progress.close()
    paths = write_all(result, arguments.output)
    if page:
        from ..review.pages import review_series

        review_series(result, page)
    mark_folder(arguments.output, key, f"motion of {series.name}", page=page)
    for index, why in sorted(result.doubts.items()):
        print(f"{PROGRAM}: frame {index} is doubtful: {why}.", file=sys.stderr)
    if not arguments.quiet:
        _summarize(result, paths)
    return 0


def _summarize(result: SeriesRegistration, paths: dict) -> None:
    import numpy as np

    displacement = result.framewise_displacement[1:]
    print(
        f"{result.series.name}: {len(result.matrices)} frames on frame {result.reference}; framewise displacement "
        f"{np.mean(displacement):.2g} mm on average, {np.max(displacement):.2g} at most; {len(result.doubts)} doubtful"
    )
    for path in paths.values():
        print(f"  wrote {Path(path)}")
