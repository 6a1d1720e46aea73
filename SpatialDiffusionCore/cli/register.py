"""``spatial-diffusion register``: lay moving volumes on a fixed one."""

from __future__ import annotations

import argparse
import sys

from .. import modality
from ..errors import InputError
from .outputs import OUTPUTS, plan_outputs, write_outputs
from .parser import EPILOG, PROGRAM, UsageError, add_command, wrapped
from .progress import Progress

REGISTER = """\
Finds the transform that lays each MOVING volume on FIXED and writes what you ask for; at least one output is
needed. With several MOVING volumes every output is a folder, the files in it are named after the volumes, and the
model and FIXED are loaded once; under torchrun each process takes its share.
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
    spatial-diffusion register scans/*.nii.gz template.nii.gz -o transforms/ --report reports/
"""


def add_parser(commands) -> None:
    """Put the command's parser among ``commands``."""
    epilog = REGISTER_EXAMPLES + "\n" + wrapped(EPILOG)
    parser = add_command(commands, "register", "align moving volumes to a fixed one", REGISTER, epilog)
    parser.add_argument("moving", nargs="+", metavar="MOVING", help="volume(s) to move")
    parser.add_argument("fixed", metavar="FIXED", help="volume that stays")
    _add_outputs(parser.add_argument_group("outputs"))
    _add_subject(parser.add_argument_group("what is registered"))
    _add_settings(parser.add_argument_group("how (rarely needed)"))


def _add_outputs(outputs) -> None:
    outputs.add_argument("-o", "--output", metavar="FILE", help="transform, moving to fixed")
    outputs.add_argument("--inverse", metavar="FILE", help="transform, fixed to moving")
    outputs.add_argument("--moved", metavar="FILE", help="the moving volume resampled on the fixed one's voxels")
    outputs.add_argument("--report", metavar="FILE.json", help="transform, quality, confidence and settings")
    outputs.add_argument("--picture", metavar="FILE.png", help="overlay before and after, in three planes")


def _add_subject(what) -> None:
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


def _add_settings(how) -> None:
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
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of the points drawn (default: 0)")
    how.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError where options do not fit each other."""
    if arguments.modality and (arguments.moving_modality or arguments.fixed_modality):
        raise UsageError("Give --modality for both volumes, or --moving-modality and --fixed-modality, not both.")
    if bool(arguments.moving_modality) != bool(arguments.fixed_modality):
        raise UsageError("Give --moving-modality and --fixed-modality together.")
    if not any(getattr(arguments, name) for name in OUTPUTS):
        raise UsageError("Nothing would be written; give -o FILE or another output.")
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"--threads must be at least 1, got {arguments.threads}.")
    if arguments.bidirectional and arguments.sampler == "fast":
        raise UsageError("--bidirectional belongs to --sampler reference; the fast sampler is symmetric already.")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    _check(arguments)
    from ..modelfile import catalog

    moving_key, fixed_key = (
        catalog.get(own or arguments.modality or "auto", auto=True).key
        for own in (arguments.moving_modality, arguments.fixed_modality)
    )
    plans = plan_outputs(arguments)
    # Reads the card only: fails before volumes are read.
    if modality.AUTO.key not in (moving_key, fixed_key):
        catalog.choose(arguments.model, moving_key, fixed_key)
    elif arguments.model:
        catalog.find(arguments.model)

    from ..spatial import volume as volumes
    from ..spatial import volume_file
    from ..spatial.transform_file import read_transform

    fixed = volume_file.load(arguments.fixed)
    volumes.validate(fixed, "fixed")
    first = volume_file.load(arguments.moving[0])
    volumes.validate(first, "moving")
    init = read_transform(arguments.init, moving=first, fixed=fixed) if arguments.init else None
    masks = {
        f"{role}_mask": volume_file.load(path)
        for role, path in (("moving", arguments.moving_mask), ("fixed", arguments.fixed_mask))
        if path
    }
    options = dict(_options(arguments), init=init, moving_modality=moving_key, fixed_modality=fixed_key, **masks)
    return _register_all(arguments, first, fixed, plans, options)


def _options(arguments: argparse.Namespace) -> dict:
    """The options of ``register`` that are written on the command line as they are."""
    names = ("transform", "model", "sampler", "steps", "bidirectional", "polish", "device", "seed")
    search = arguments.search and (arguments.search_by == "similarity" or arguments.search_by)
    return {**{name: getattr(arguments, name) for name in names}, "search": search}


def _register_all(arguments: argparse.Namespace, first, fixed, plans: list, options: dict) -> int:
    """Register every moving volume (the first one is loaded already) and write what was asked for."""
    import torch

    from ..registration import register_many, resolve_device
    from ..spatial import volume_file

    resolve_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loaders = [lambda: first] + [lambda path=path: volume_file.load(path) for path in arguments.moving[1:]]
    progress = Progress(arguments.quiet or not sys.stderr.isatty())
    failed = []

    def done(index, result):
        progress.close()
        if isinstance(result, InputError):
            failed.append(index)
            if len(loaders) == 1:
                raise result
            print(f"{PROGRAM}: {result}", file=sys.stderr)
            return
        moving = first if index == 0 else volume_file.load(arguments.moving[index])
        write_outputs(result, plans[index], moving, fixed)
        if not arguments.quiet:
            _summarize(result, plans[index])

    register_many(loaders, fixed, on_step=progress, on_result=done, **options)
    return 1 if failed else 0


def _summarize(result, plan) -> None:
    print(f"{result.moving} → {result.fixed}: {result.decomposition.text()}")
    print(f"  {result.quality.summary()}")
    print(f"  taken for {result.kinds()}; {result.seconds:.1f} s, model {result.model}")
    for warning in result.quality.warnings:
        print(f"  Warning: {warning}")
    for path in plan.values():
        print(f"  wrote {path}")
