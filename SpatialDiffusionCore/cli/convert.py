"""``spatial-diffusion convert``: rewrite a transform in another format."""

from __future__ import annotations

import argparse

from .outputs import TRANSFORMS, differs
from .parser import add_command

CONVERT = """\
Rewrites a transform in another format; the extensions decide. FSL's FLIRT matrices need both volumes.
"""

CONVERT_EXAMPLES = """\
EXAMPLES
  spatial-diffusion convert a_to_b.tfm a_to_b.lta --moving a.nii.gz --fixed b.nii.gz
  spatial-diffusion convert a_to_b.tfm a_to_b.mat --to flirt --moving a.nii.gz --fixed b.nii.gz
  spatial-diffusion convert a_to_b.tfm b_to_a.tfm --invert
"""


def add_parser(commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(commands, "convert", "rewrite a transform in another format", CONVERT, CONVERT_EXAMPLES)
    parser.add_argument("input", metavar="IN", help="transform to read")
    parser.add_argument("output", metavar="OUT", help="transform to write")
    parser.add_argument("--invert", action="store_true", help="write the inverse")
    parser.add_argument(
        "--from",
        dest="source_format",
        choices=("itk", "ras", "flirt", "lta"),
        metavar="FORMAT",
        help="format of IN where extension and content leave doubt: itk, ras, flirt or lta",
    )
    parser.add_argument(
        "--to",
        dest="target_format",
        choices=("itk", "ras", "flirt", "lta"),
        metavar="FORMAT",
        help="format of OUT where the extension fits several",
    )
    parser.add_argument("--moving", metavar="FILE", help="moving volume (FLIRT, .lta)")
    parser.add_argument("--fixed", metavar="FILE", help="fixed volume (FLIRT, .lta)")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    from ..spatial.volume_file import check_output, load

    check_output(arguments.output, TRANSFORMS, "the transform")
    differs(arguments.output, arguments.input)
    import numpy as np

    from ..spatial.transform_file import read_transform, write_transform

    moving = load(arguments.moving, keep_type=True) if arguments.moving else None
    fixed = load(arguments.fixed, keep_type=True) if arguments.fixed else None
    matrix = read_transform(arguments.input, moving=moving, fixed=fixed, format=arguments.source_format)
    if arguments.invert:
        matrix, moving, fixed = np.linalg.inv(matrix), fixed, moving
    write_transform(matrix, arguments.output, moving=moving, fixed=fixed, format=arguments.target_format)
    return 0
