"""``spatial-diffusion register``: lay moving volumes on a fixed one."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from .. import modality
from .outputs import FORMATS, OUTPUTS, plan_outputs
from .parser import EPILOG, PROGRAM, Commands, Group, UsageError, add_command, wrapped
from .selection import volume_files

if TYPE_CHECKING:
    from ..options import RegistrationOptions

REGISTER = """\
Finds the transform that lays each MOVING volume on FIXED and writes what you ask for; at least one output is
needed. MOVING may be files, folders (with all below them) and patterns. An output that ends in /, is a folder, or has
no extension, means a folder, in which files are named after the volumes; with several MOVING volumes each output must
be one. One volume that cannot be used does not stop the others; a table of all of them, registrations.csv, is written
into the folder as well. What is there already, by content and settings, is not done again. Under torchrun, or with RANK
and WORLD_SIZE set, each process takes its share.
"""

REGISTER_EXAMPLES = """\
EXAMPLES
  Brain to template, the transform for 3D Slicer and a picture to judge it by:
    spatial-diffusion register brain.nii.gz template.nii.gz -o brain_to_template.tfm --picture check.png
  Same subject, rigid, with the moving volume resampled on the fixed one:
    spatial-diffusion register visit2.nii.gz visit1.nii.gz --transform rigid --moved visit2_moved.nii.gz
  A T2 to a T1, from a pose already roughly known:
    spatial-diffusion register t2.nii.gz t1.nii.gz -o t2_to_t1.tfm --init guess.tfm
  A folder of scans to one template:
    spatial-diffusion register scans/ template.nii.gz -o transforms/ --picture pictures/
  For FSL, and with the commands that use the transform:
    spatial-diffusion register t2.nii.gz t1.nii.gz -o t2_to_t1.mat --format flirt --show-commands
  Thousands of scans, eight at a time, with a page to review them:
    spatial-diffusion register scans/ template.nii.gz -o transforms/ --jobs 8 --review review/
  In a script that must not go on with a poor answer:
    spatial-diffusion register a.nii.gz b.nii.gz -o a_to_b.tfm --quiet --fail-on poor || exit 1
"""


def add_parser(commands: Commands) -> None:
    """Put the command's parser among ``commands``."""
    epilog = REGISTER_EXAMPLES + "\n" + wrapped(EPILOG)
    add_arguments(add_command(commands, "register", "align moving volumes to a fixed one", REGISTER, epilog))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``register``, which the demo gives, too."""
    parser.add_argument("moving", nargs="+", metavar="MOVING", help="volume(s) to move")
    parser.add_argument("fixed", metavar="FIXED", help="volume that stays")
    _add_outputs(parser.add_argument_group("outputs"))
    _add_subject(parser.add_argument_group("what is registered"))
    _add_settings(parser.add_argument_group("how (rarely needed)"))


def _add_outputs(outputs: Group) -> None:
    outputs.add_argument("-o", "--output", metavar="FILE", help="transform, moving to fixed")
    outputs.add_argument(
        "--format",
        choices=tuple(FORMATS),
        metavar="FORMAT",
        help="of the transforms, where the extension fits several: itk, flirt (FSL), lta (FreeSurfer) or ras (4×4)",
    )
    outputs.add_argument("--inverse", metavar="FILE", help="transform, fixed to moving")
    outputs.add_argument("--moved", metavar="FILE", help="the moving volume resampled on the fixed one's voxels")
    outputs.add_argument(
        "--report", metavar="FILE.json", help="transform, quality and settings, each field explained in docs"
    )
    outputs.add_argument("--picture", metavar="FILE.png", help="before and after, in three planes, to judge by")
    outputs.add_argument(
        "--review", metavar="DIR", help="a page for the browser to look at all answers, likely failures first"
    )
    outputs.add_argument(
        "--show-commands",
        action="store_true",
        help="print the commands of FSL, ANTs or FreeSurfer that use the transform",
    )


def _add_subject(what: Group) -> None:
    known = ", ".join(modality.MODALITIES)
    what.add_argument(
        "--modality",
        metavar="M",
        help=f"modality of both volumes: {known}, or auto, which "
        "recognizes T1 brains and head-and-neck CTs (default: auto)",
    )
    what.add_argument("--moving-modality", metavar="M", help="modality of the moving volume, where they differ")
    what.add_argument("--fixed-modality", metavar="M", help="modality of the fixed volume, where they differ")
    what.add_argument(
        "--transform",
        metavar="KIND",
        default="affine",
        choices=("rigid", "similarity", "affine"),
        help="rigid, similarity or affine (default: affine)",
    )
    what.add_argument("--init", metavar="FILE", help="transform, moving to fixed, to start from; no pose search then")
    what.add_argument("--moving-mask", metavar="FILE", help="only the part of the moving volume that is not 0 here")
    what.add_argument("--fixed-mask", metavar="FILE", help="only the part of the fixed volume that is not 0 here")


def _add_settings(how: Group) -> None:
    how.add_argument("--model", metavar="NAME|FILE", help="trained model (default: the one for the modality)")
    how.add_argument(
        "--sampler",
        metavar="NAME",
        choices=("fast", "reference"),
        help="fast, or reference: the published 65 steps and nothing else (default: fast; reference "
        "for an imported checkpoint)",
    )
    how.add_argument("--steps", metavar="N", type=int, help="diffusion steps of the fast sampler (0: no diffusion)")
    how.add_argument(
        "--search",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for the pose among all rotations (default)",
    )
    how.add_argument(
        "--search-by",
        choices=("similarity", "screen", "network"),
        default="similarity",
        help="compare the volumes (default), the same but never go on where the answer is doubtful (about "
        "a second at most), or compare only the feature points that the network finds in them",
    )
    how.add_argument("--bidirectional", action="store_true", help="with reference: both directions, combined")
    how.add_argument(
        "--polish",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="refine by intensities at the end (default: with fast only)",
    )
    how.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps")
    how.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    how.add_argument(
        "--jobs",
        metavar="N|ADDRESS",
        help="register N volumes at a time, each by a process of one thread, or hand them to the Dask scheduler at "
        "an address such as tcp://HOST:8786 (default: one after the other by all threads)",
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the points drawn (default: 0)")
    how.add_argument("--quiet", action="store_true", help="no progress and no summary; warnings remain")
    how.add_argument(
        "--fail-on",
        choices=("poor", "fair"),
        help="exit with status 3 if an answer is poor, or no better than fair; everything is written all the same",
    )


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError where options do not fit each other."""
    if arguments.modality and (arguments.moving_modality or arguments.fixed_modality):
        raise UsageError("Give --modality for both volumes, or --moving-modality and --fixed-modality, not both.")
    if not any(getattr(arguments, name) for name in (*OUTPUTS, "review")):
        raise UsageError("Nothing would be written; give -o FILE or another output.")
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"--threads must be at least 1, got {arguments.threads}.")
    if arguments.bidirectional and arguments.sampler == "fast":
        raise UsageError("--bidirectional belongs to --sampler reference; the fast sampler is symmetric already.")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    _check(arguments)
    from .batch import Batch, warn_if_inverted
    from .jobs import Common, Job, record_path, target

    movings = volume_files(arguments.moving, leave_out=(arguments.fixed, arguments.moving_mask, arguments.fixed_mask))
    from ..spatial.file_names import unique_names

    names = unique_names(movings)
    from ..options import RegistrationOptions
    from ..spatial import volume_file

    options = _options(arguments)
    _check_model(RegistrationOptions(**options))
    from ..device import resolve_device
    from ..inputs import as_volume
    from ..many.executor import executor
    from ..spatial.transform_file import read_transform

    resolve_device(arguments.device)
    spread = None if arguments.jobs is None else executor(arguments.jobs)
    plans = plan_outputs(arguments, movings, names, volume_file.stem(arguments.fixed))
    if arguments.review:
        from ..review.pages import prepare_folder

        prepare_folder(arguments.review)
    init = None
    if arguments.init:
        # With several volumes, a matrix that needs its own moving volume cannot be meant for all of them.
        first = as_volume(movings[0], "moving") if len(movings) == 1 else None
        fixed = as_volume(arguments.fixed, "fixed")
        init = read_transform(arguments.init, moving=first, fixed=fixed)
        if first is not None:
            warn_if_inverted(init, first, fixed, arguments.init)
    common = Common.of(arguments, options, init)
    # What is wrong with the fixed volume, the masks, the model and the outputs is said now.
    _check_fit(plans, movings, target(common).fixed)
    jobs = [
        Job(common, moving, name, plan, record_path(plan, name) if len(movings) > 1 else None)
        for moving, name, plan in zip(movings, names, plans)
    ]
    return Batch(arguments, jobs, spread).run()


def _check_fit(plans: list[dict], movings: list[str], fixed: Any) -> None:
    """What cannot be written is refused before the work; what other programs cannot open is said."""
    from ..spatial.transform_file import check_transform_output
    from ..spatial.volume_file import check_grid

    for plan, moving in zip(plans, movings):
        for option, pair in (("output", (moving, fixed)), ("inverse", (fixed, moving))):
            if option in plan:
                check_transform_output(plan[option], *pair)
        unfit = check_grid(fixed, plan["moved"]) if "moved" in plan else None
        if unfit:
            print(f"{PROGRAM}: warning: {unfit}", file=sys.stderr)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of ``register`` that are written on the command line as they are."""
    names = ["transform", "model", "sampler", "steps", "bidirectional", "polish", "device", "seed"]
    names += ["moving_modality", "fixed_modality"]
    search = arguments.search and (arguments.search_by == "similarity" or arguments.search_by)
    options = {name: getattr(arguments, name) for name in names}
    return {**options, "modality": arguments.modality or modality.AUTO.key, "search": search}


def _check_model(options: RegistrationOptions) -> None:
    """Reads the model's card only, so that what is wrong with it is said before volumes are read."""
    from ..modelfile import catalog

    keys = str(options.moving_modality), str(options.fixed_modality)
    if modality.AUTO.key not in keys:
        catalog.choose(options.model, *keys)
    elif options.model:
        catalog.find(options.model)
