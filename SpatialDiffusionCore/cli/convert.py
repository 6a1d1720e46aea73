"""``spatial-diffusion convert``: rewrite a transform in another format."""

from __future__ import annotations

import argparse
import sys

from .outputs import FORMATS, TRANSFORMS, chosen_format, described, differs
from .parser import PROGRAM, Commands, UsageError, add_command

CONVERT = """\
Rewrites a transform in another format; the extensions decide. FSL's FLIRT matrices need both volumes, and FreeSurfer's
.lta files should have them.
"""

CONVERT_EXAMPLES = """\
EXAMPLES
  spatial-diffusion convert a_to_b.tfm a_to_b.lta --moving a.nii.gz --fixed b.nii.gz
  spatial-diffusion convert a_to_b.tfm a_to_b.mat --to flirt --moving a.nii.gz --fixed b.nii.gz
  spatial-diffusion convert a_to_b.tfm b_to_a.tfm --invert
"""


def add_parser(commands: Commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(commands, "convert", "rewrite a transform in another format", CONVERT, CONVERT_EXAMPLES)
    parser.add_argument("input", metavar="IN", help="transform to read")
    parser.add_argument("output", metavar="OUT", help="transform to write")
    parser.add_argument("--invert", action="store_true", help="write the inverse")
    parser.add_argument(
        "--from",
        dest="source_format",
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help="format of IN where extension and content leave doubt: itk, ras, flirt, lta or afni",
    )
    parser.add_argument(
        "--to",
        "--format",
        dest="target_format",
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help="format of OUT where the extension fits several",
    )
    parser.add_argument(
        "--moving", metavar="FILE", help="moving volume (FLIRT, .lta, AFNI; for DICOM the folder of its series)"
    )
    parser.add_argument("--fixed", metavar="FILE", help="fixed volume (the same)")
    parser.add_argument(
        "--show-commands", action="store_true", help="print the commands of FSL, ANTs or FreeSurfer that use it"
    )
    parser.add_argument("--quiet", action="store_true", help="do not say what was written")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    from ..inputs import as_volume
    from ..spatial import geometry
    from ..spatial.transform_file import read_transform, write_transform
    from ..spatial.volume_file import check_output

    check_output(arguments.output, TRANSFORMS, "the transform")
    differs(arguments.output, arguments.input, arguments.moving, arguments.fixed)
    held = chosen_format(arguments.output, arguments.target_format)
    files = arguments.moving, arguments.fixed
    if arguments.show_commands and not all(files):
        raise UsageError("--show-commands needs --moving and --fixed, which the commands name.")
    moving, fixed = (as_volume(path, role, True) if path else None for path, role in zip(files, ("moving", "fixed")))
    matrix = read_transform(arguments.input, moving=moving, fixed=fixed, format=arguments.source_format)
    if arguments.invert:
        matrix, moving, fixed, files = geometry.inverse(matrix), fixed, moving, files[::-1]
    write_transform(matrix, arguments.output, moving=moving, fixed=fixed, format=held)
    if held == "lta" and (moving is None or fixed is None):
        print(
            f"{PROGRAM}: warning: {arguments.output} is incomplete: it lacks the geometry of the two volumes, without "
            "which FreeSurfer's programs cannot use it; give --moving and --fixed.",
            file=sys.stderr,
        )
    if not arguments.quiet:
        print(f"wrote {described(arguments.output, held)}")
    if arguments.show_commands:
        from .commands import commands_for

        print("\n".join(commands_for(arguments.output, *files, held)))
    return 0
