"""``spatial-diffusion apply``: move a volume by a transform."""

from __future__ import annotations

import argparse

from .outputs import VOLUMES, differs
from .parser import add_command

APPLY = """\
Resamples INPUT, moved by TRANSFORM, on the voxels of the reference. Use nearest for label maps: their type and
values are kept.
"""

APPLY_EXAMPLES = """\
EXAMPLES
  spatial-diffusion apply brain_to_template.tfm labels.nii.gz --reference template.nii.gz -o labels_moved.nii.gz \\
      --interpolation nearest
"""


def add_parser(commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(commands, "apply", "move a volume, label map or other by a transform", APPLY, APPLY_EXAMPLES)
    parser.add_argument("transform", metavar="TRANSFORM", help="transform, moving to fixed")
    parser.add_argument("input", metavar="INPUT", help="volume to move")
    parser.add_argument("--reference", required=True, metavar="FIXED", help="volume whose voxels the output gets")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="moved volume")
    parser.add_argument(
        "--interpolation",
        default="linear",
        choices=("linear", "nearest", "cubic"),
        metavar="KIND",
        help="linear, nearest (label maps) or cubic (default: linear)",
    )
    parser.add_argument("--invert", action="store_true", help="apply the inverse")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    from ..spatial import volume as volumes
    from ..spatial import volume_file

    volume_file.check_output(arguments.output, VOLUMES, "the moved volume")
    differs(arguments.output, arguments.input, arguments.reference, arguments.transform)
    import numpy as np

    from ..spatial.transform_file import read_transform

    moving = volume_file.load(arguments.input, keep_type=arguments.interpolation == "nearest")
    reference = volume_file.load(arguments.reference, keep_type=True)
    matrix = read_transform(arguments.transform, moving=moving, fixed=reference)
    if arguments.invert:
        matrix = np.linalg.inv(matrix)
    volume_file.save(volumes.resample(moving, reference, matrix, arguments.interpolation), arguments.output)
    return 0
