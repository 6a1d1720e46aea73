"""The shell command ``spatial-diffusion``: register, apply, convert, models, demo.

Nothing heavier than argparse is imported before the arguments are known, so ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import textwrap
from pathlib import Path

from . import __version__, modality
from .errors import InputError
from .modelfile import catalog as catalog_module

#: What each kind of output may be called.
TRANSFORMS = (".tfm", ".txt", ".h5", ".mat", ".lta")

VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
PROGRAM = "spatial-diffusion"
OVERVIEW = """\
Aligns 3D medical images: finds the rigid, similarity or affine transform that lays a moving volume on a fixed one,
from any starting pose, and says how far the answer can be trusted.
"""

EPILOG = """\
FORMATS
  Volumes: .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd; FILE@N is volume N (from 0) of a 4D file.
  Transforms: .tfm, .h5, .mat (ITK; what 3D Slicer, ANTs and SimpleITK read), .lta (FreeSurfer), .txt (4×4 matrix,
  moving to fixed, RAS millimeters). Files in the manner of ITK hold the inverse in LPS, as their readers expect.

ENVIRONMENT
  SPATIAL_DIFFUSION_MODELS  folder of your own models, searched beside those installed with the program
  SPATIAL_DIFFUSION_DEBUG   set to 1 for full tracebacks

EXIT STATUS
  0 done; 1 an input cannot be used or the work failed; 2 the command line is wrong

REFERENCE
  If you use this in your work, please cite the method: Sumpena et al., Investigative Ophthalmology & Visual
  Science 66(8):1475, 2025.
"""

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

APPLY = """\
Resamples INPUT, moved by TRANSFORM, on the voxels of the reference. Use nearest for label maps: their type and
values are kept.
"""

APPLY_EXAMPLES = """\
EXAMPLES
  spatial-diffusion apply brain_to_template.tfm labels.nii.gz --reference template.nii.gz -o labels_moved.nii.gz \\
      --interpolation nearest
"""

CONVERT = """\
Rewrites a transform in another format; the extensions decide. FSL's FLIRT matrices need both volumes.
"""

CONVERT_EXAMPLES = """\
EXAMPLES
  spatial-diffusion convert a_to_b.tfm a_to_b.lta --moving a.nii.gz --fixed b.nii.gz
  spatial-diffusion convert a_to_b.tfm a_to_b.mat --to flirt --moving a.nii.gz --fixed b.nii.gz
  spatial-diffusion convert a_to_b.tfm b_to_a.tfm --invert
"""


class _Parser(argparse.ArgumentParser):
    """One line on stderr for a wrong command line, exit status 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message[:1].upper()}{message[1:]} (see {self.prog} --help)\n")


def _wrapped(text: str) -> str:
    """Paragraphs rewrapped to the terminal; lines that begin with spaces or a heading stay apart."""
    width = min(110, max(50, shutil.get_terminal_size((100, 24)).columns))
    lines = []
    for paragraph in text.strip("\n").split("\n\n"):
        block = paragraph.splitlines()
        if block[0].isupper() or any(line.startswith("    ") for line in block):
            lines += block
        else:
            lines += textwrap.wrap(" ".join(block), width)
        lines.append("")
    return "\n".join(lines[:-1])


def _parser() -> argparse.ArgumentParser:
    def formatter(prog):
        width = min(110, max(50, shutil.get_terminal_size((100, 24)).columns))
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=width)

    parser = _Parser(prog=PROGRAM, description=_wrapped(OVERVIEW), epilog=_wrapped(EPILOG), formatter_class=formatter)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, title="commands", parser_class=_Parser
    )

    def command(name, summary, description, epilog=""):
        return commands.add_parser(
            name,
            help=summary,
            description=_wrapped(description),
            formatter_class=formatter,
            epilog=epilog + ("\n" if epilog else "") + _wrapped(EPILOG) if name == "register" else epilog,
        )

    known = ", ".join(modality.MODALITIES)
    register = command("register", "align moving volumes to a fixed one", REGISTER, REGISTER_EXAMPLES)
    register.add_argument("moving", nargs="+", metavar="MOVING", help="volume(s) to move")
    register.add_argument("fixed", metavar="FIXED", help="volume that stays")
    outputs = register.add_argument_group("outputs")
    outputs.add_argument("-o", "--output", metavar="FILE", help="transform, moving to fixed")
    outputs.add_argument("--inverse", metavar="FILE", help="transform, fixed to moving")
    outputs.add_argument("--moved", metavar="FILE", help="the moving volume resampled on the fixed one's voxels")
    outputs.add_argument("--report", metavar="FILE.json", help="transform, quality, confidence and settings")
    outputs.add_argument("--picture", metavar="FILE.png", help="overlay before and after, in three planes")
    what = register.add_argument_group("what is registered")
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
    how = register.add_argument_group("how (rarely needed)")
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

    apply = command("apply", "move a volume, label map or other by a transform", APPLY, APPLY_EXAMPLES)
    apply.add_argument("transform", metavar="TRANSFORM", help="transform, moving to fixed")
    apply.add_argument("input", metavar="INPUT", help="volume to move")
    apply.add_argument("--reference", required=True, metavar="FIXED", help="volume whose voxels the output gets")
    apply.add_argument("-o", "--output", required=True, metavar="OUT", help="moved volume")
    apply.add_argument(
        "--interpolation",
        default="linear",
        choices=("linear", "nearest", "cubic"),
        metavar="KIND",
        help="linear, nearest (label maps) or cubic (default: linear)",
    )
    apply.add_argument("--invert", action="store_true", help="apply the inverse")

    convert = command("convert", "rewrite a transform in another format", CONVERT, CONVERT_EXAMPLES)
    convert.add_argument("input", metavar="IN", help="transform to read")
    convert.add_argument("output", metavar="OUT", help="transform to write")
    convert.add_argument("--invert", action="store_true", help="write the inverse")
    convert.add_argument(
        "--from",
        dest="source_format",
        choices=("itk", "ras", "flirt", "lta"),
        metavar="FORMAT",
        help="format of IN where extension and content leave doubt: itk, ras, flirt or lta",
    )
    convert.add_argument(
        "--to",
        dest="target_format",
        choices=("itk", "ras", "flirt", "lta"),
        metavar="FORMAT",
        help="format of OUT where the extension fits several",
    )
    convert.add_argument("--moving", metavar="FILE", help="moving volume (FLIRT, .lta)")
    convert.add_argument("--fixed", metavar="FILE", help="fixed volume (FLIRT, .lta)")

    models = command("models", "list, describe and import trained models", "Lists, describes and imports models.")
    actions = models.add_subparsers(
        dest="action", metavar="ACTION", required=True, title="actions", parser_class=_Parser
    )
    listed = actions.add_parser("list", help="installed models", description="Lists the installed models.")
    listed.add_argument("--json", action="store_true", help="as JSON")
    info = actions.add_parser("info", help="everything about one model", description="Describes a model.")
    info.add_argument("model", metavar="NAME|FILE", help="installed model or model file")
    info.add_argument("--json", action="store_true", help="as JSON")
    imported = actions.add_parser(
        "import",
        help="make a model of a published checkpoint",
        formatter_class=formatter,
        description=_wrapped(
            "Makes a model file of a checkpoint of the published implementation. Channels, classes "
            "and head are read from its tensors; the volume size and the order of the modalities "
            "cannot be."
        ),
    )
    imported.add_argument("checkpoint", metavar="CKPT.pth", help="checkpoint: a plain dictionary of tensors")
    imported.add_argument(
        "--volume-size",
        nargs=3,
        type=int,
        required=True,
        metavar=("D", "H", "W"),
        help="size of the volumes it was trained on",
    )
    imported.add_argument(
        "--modality",
        action="append",
        nargs="+",
        default=[],
        metavar="M",
        help=f"modalities in the order of training: {known}",
    )
    imported.add_argument(
        "--schedule",
        default="cosine",
        choices=("cosine", "linear"),
        metavar="KIND",
        help="cosine or linear (default: cosine)",
    )
    imported.add_argument("--timesteps", type=int, default=65, metavar="T", help="timesteps (default: 65)")
    imported.add_argument(
        "--transform-range",
        nargs=2,
        type=float,
        default=(0.01, 0.07),
        metavar=("MIN", "MAX"),
        help="step deviations of the 3×3 part (default: 0.01 0.07)",
    )
    imported.add_argument(
        "--translation-range",
        nargs=2,
        type=float,
        default=(0.5, 4.0),
        metavar=("MIN", "MAX"),
        help="step deviations of the translation in voxels (default: 0.5 4.0)",
    )
    imported.add_argument("--groups", type=int, metavar="N", help="groups of its GroupNorm (default: 32)")
    imported.add_argument("--name", help="name in the list of models (default: the file's)")
    imported.add_argument(
        "-o", "--output", metavar="MODEL.safetensors", help="model file (default: your own models' folder)"
    )

    demo = command(
        "demo",
        "register the bundled pair",
        "Registers a real brain, turned by 60° and shifted by 40 mm, "
        "to the MNI152 template and writes transform, moved volume, report and picture.",
    )
    demo.add_argument("-o", "--output", default="demo-output", metavar="FOLDER", help="default: demo-output")
    demo.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    return parser


def main(argv=None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    commands = {"register": _register, "apply": _apply, "convert": _convert, "models": _models, "demo": _demo}
    try:
        return commands[arguments.command](arguments) or 0
    except _Usage as error:
        print(f"{PROGRAM} {arguments.command}: {error}", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: cancelled; files that were not complete are not there.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("SPATIAL_DIFFUSION_DEBUG"):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, MemoryError) or "out of memory" in first.lower():
            print(f"{PROGRAM}: out of memory; try --device cpu or smaller volumes ({first}).", file=sys.stderr)
        else:
            print(
                f"{PROGRAM}: unexpected {type(error).__name__}: {first} (SPATIAL_DIFFUSION_DEBUG=1 shows where).",
                file=sys.stderr,
            )
        return 1


class _Usage(Exception):
    """A command line whose parts do not fit each other."""


_OUTPUTS = {  # option: (extensions, what it is called, file name in a folder)
    "output": (TRANSFORMS, "the transform", "{moving}_to_{fixed}.tfm"),
    "inverse": (TRANSFORMS, "the inverse transform", "{fixed}_to_{moving}.tfm"),
    "moved": (VOLUMES, "the moved volume", "{moving}_moved.nii.gz"),
    "report": ((".json",), "the report", "{moving}_report.json"),
    "picture": ((".png",), "the picture", "{moving}_check.png"),
}


def _register(arguments) -> int:
    if arguments.modality and (arguments.moving_modality or arguments.fixed_modality):
        raise _Usage("Give --modality for both volumes, or --moving-modality and --fixed-modality, not both.")
    if bool(arguments.moving_modality) != bool(arguments.fixed_modality):
        raise _Usage("Give --moving-modality and --fixed-modality together.")
    if not any(getattr(arguments, name) for name in _OUTPUTS):
        raise _Usage("Nothing would be written; give -o FILE or another output.")
    if arguments.threads is not None and arguments.threads < 1:
        raise _Usage(f"--threads must be at least 1, got {arguments.threads}.")
    if arguments.bidirectional and arguments.sampler == "fast":
        raise _Usage("--bidirectional belongs to --sampler reference; the fast sampler is symmetric already.")
    moving_key, fixed_key = (
        catalog_module.get(own or arguments.modality or "auto", auto=True).key
        for own in (arguments.moving_modality, arguments.fixed_modality)
    )
    plans = _plan_outputs(arguments)
    from .modelfile.catalog import choose, find

    # Reads the card only: fails before volumes are read.
    if modality.AUTO.key not in (moving_key, fixed_key):
        choose(arguments.model, moving_key, fixed_key)
    elif arguments.model:
        find(arguments.model)

    from .spatial import volume as volumes
    from .spatial import volume_file
    from .spatial.transform_file import read_transform

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
    import torch

    from .registration import register_many, resolve_device

    resolve_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loaders = [lambda: first] + [lambda path=path: volume_file.load(path) for path in arguments.moving[1:]]
    progress = _Progress(arguments.quiet or not sys.stderr.isatty())
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
        _write_outputs(result, plans[index], moving, fixed)
        if not arguments.quiet:
            _summarize(result, plans[index])

    register_many(
        loaders,
        fixed,
        on_step=progress,
        on_result=done,
        moving_modality=moving_key,
        fixed_modality=fixed_key,
        transform=arguments.transform,
        model=arguments.model,
        sampler=arguments.sampler,
        steps=arguments.steps,
        bidirectional=arguments.bidirectional,
        polish=arguments.polish,
        device=arguments.device,
        seed=arguments.seed,
        search=arguments.search and (arguments.search_by == "similarity" or arguments.search_by),
        init=init,
        **masks,
    )
    return 1 if failed else 0


def _plan_outputs(arguments) -> list:
    """Per moving volume {option: path}; everything that can be wrong with the paths is found here."""
    from .spatial.volume_file import check_output

    inputs = [*arguments.moving, arguments.fixed]
    inputs += [p for p in (arguments.init, arguments.moving_mask, arguments.fixed_mask) if p]
    taken = {os.path.realpath(p): p for p in inputs}
    several = len(arguments.moving) > 1
    plans = []
    for moving in arguments.moving:
        names = {"moving": _stem(moving), "fixed": _stem(arguments.fixed)}
        plan = {}
        for option, (extensions, what, pattern) in _OUTPUTS.items():
            path = getattr(arguments, option)
            if not path:
                continue
            if several and not os.path.isdir(path):
                if os.path.exists(path) or not os.path.isdir(os.path.dirname(os.path.abspath(path))):
                    raise InputError(f"With several moving volumes {what} needs a folder, and {path} cannot be one.")
                os.mkdir(path)
            if os.path.isdir(path):
                path = os.path.join(path, pattern.format(**names))
            check_output(path, extensions, what)
            real = os.path.realpath(path)
            if real in taken:
                other = taken[real]
                clash = "an input" if other in inputs else "another output"
                raise InputError(f"{path} would overwrite {clash} ({other}); choose another name for {what}.")
            taken[real] = path
            plan[option] = path
        plans.append(plan)
    return plans


def _stem(path: str) -> str:
    name = os.path.basename(path)
    for ending in VOLUMES:
        base, at, index = name.partition("@")
        if base.lower().endswith(ending):
            return base[: -len(ending)] + (f"_{index}" if at else "")
    return os.path.splitext(name)[0]


def _write_outputs(result, plan, moving, fixed) -> None:
    import numpy as np

    from .files import written_whole
    from .spatial import volume_file
    from .spatial.transform_file import write_transform

    if "output" in plan:
        result.save(plan["output"], moving=moving, fixed=fixed)
    if "inverse" in plan:
        write_transform(np.linalg.inv(result.matrix), plan["inverse"], moving=fixed, fixed=moving)
    if "moved" in plan:
        volume_file.save(result.apply(moving, fixed), plan["moved"])
    if "report" in plan:
        with written_whole(plan["report"]) as temporary:
            Path(temporary).write_text(json.dumps(result.report(), indent=2) + "\n", encoding="utf-8")
    if "picture" in plan:
        from .picture import draw

        draw(result, moving, fixed, plan["picture"])


def _summarize(result, plan) -> None:
    print(f"{result.moving} → {result.fixed}: {result.decomposition.text()}")
    print(f"  {result.quality.summary()}")
    print(f"  taken for {result.kinds()}; {result.seconds:.1f} s, model {result.model}")
    for warning in result.quality.warnings:
        print(f"  Warning: {warning}")
    for path in plan.values():
        print(f"  wrote {path}")


class _Progress:
    """A progress bar on a terminal, made when the first step arrives."""

    def __init__(self, silent: bool):
        self.silent, self.bar = silent, None

    def __call__(self, step):
        if self.silent:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=step.count, leave=False, file=sys.stderr, bar_format="{desc:24}|{bar}| {n}/{total}")
        self.bar.total = step.count  # grows when the search goes on
        self.bar.set_description_str(step.stage)
        self.bar.update(step.index - self.bar.n)

    def close(self):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _differs(output, *inputs) -> None:
    for path in inputs:
        if path and os.path.realpath(output) == os.path.realpath(path):
            raise InputError(f"{output} would overwrite an input; choose another name for the output.")


def _apply(arguments) -> int:
    from .spatial import volume as volumes
    from .spatial import volume_file

    volume_file.check_output(arguments.output, VOLUMES, "the moved volume")
    _differs(arguments.output, arguments.input, arguments.reference, arguments.transform)
    import numpy as np

    from .spatial.transform_file import read_transform

    moving = volume_file.load(arguments.input, keep_type=arguments.interpolation == "nearest")
    reference = volume_file.load(arguments.reference, keep_type=True)
    matrix = read_transform(arguments.transform, moving=moving, fixed=reference)
    if arguments.invert:
        matrix = np.linalg.inv(matrix)
    volume_file.save(volumes.resample(moving, reference, matrix, arguments.interpolation), arguments.output)
    return 0


def _convert(arguments) -> int:
    from .spatial.volume_file import check_output, load

    check_output(arguments.output, TRANSFORMS, "the transform")
    _differs(arguments.output, arguments.input)
    import numpy as np

    from .spatial.transform_file import read_transform, write_transform

    moving = load(arguments.moving, keep_type=True) if arguments.moving else None
    fixed = load(arguments.fixed, keep_type=True) if arguments.fixed else None
    matrix = read_transform(arguments.input, moving=moving, fixed=fixed, format=arguments.source_format)
    if arguments.invert:
        matrix, moving, fixed = np.linalg.inv(matrix), fixed, moving
    write_transform(matrix, arguments.output, moving=moving, fixed=fixed, format=arguments.target_format)
    return 0


def _models(arguments) -> int:
    from .modelfile import card as card_module
    from .modelfile import catalog as catalog_module
    from .modelfile import checkpoint_import
    from .modelfile import model as models

    if arguments.action == "list":
        catalog = catalog_module.catalog()
        if arguments.json:
            print(json.dumps({name: {"path": str(path), "card": card} for name, (path, card) in catalog.items()}))
            return 0
        for name, (path, card) in catalog.items():
            print(f"{name}  ({', '.join(card['modalities'])})  {path}")
        if not catalog:
            print(f"No models are installed; put model files into {catalog_module.user_folder()}.")
        return 0
    if arguments.action == "info":
        path, card = catalog_module.choose(arguments.model, *[_any_known(models, arguments.model)] * 2)
        facts = models.describe(models.load_model(path, *[next(iter(card["modalities"]))] * 2))
        if arguments.json:
            print(json.dumps({"path": str(path), **facts, "card": card}, indent=2))
            return 0
        print(f"{card['name']}\n  file        {path}")
        print(
            f"  network     {facts['layers']} layers, {facts['parameters']:,} parameters, "
            f"{facts['flops'] / 1e9:.1f} GFLOP per pass"
        )
        for key, value in card.items():
            if key not in ("name", "format"):
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                lines = textwrap.wrap(text, 96) or [""]
                print(f"  {key:<11} {lines[0]}" + "".join(f"\n{'':14}{line}" for line in lines[1:]))
        return 0
    from .method.schedule import Schedule

    output = arguments.output
    if output is None:
        catalog_module.user_folder().mkdir(parents=True, exist_ok=True)
        output = str(catalog_module.user_folder() / f"{Path(arguments.checkpoint).stem}{card_module.SUFFIX}")
    from .spatial.volume_file import check_output

    check_output(output, (card_module.SUFFIX,), "the model")
    _differs(output, arguments.checkpoint)
    try:
        schedule = Schedule(
            arguments.timesteps,
            tuple(arguments.transform_range),
            tuple(arguments.translation_range),
            arguments.schedule,
        )
    except ValueError as error:
        raise _Usage(str(error)) from None
    card = checkpoint_import.import_checkpoint(
        arguments.checkpoint,
        output,
        volume_size=arguments.volume_size,
        modality=sum(arguments.modality, []),
        schedule=schedule,
        groups=arguments.groups,
        name=arguments.name,
    )
    print(f"wrote {output}: {card['name']}, for {', '.join(card['modalities'])}")
    return 0


def _any_known(models, name) -> str:
    """A modality that the model knows, so that describing it never fails for want of one."""
    if os.fspath(name).endswith(models.SUFFIX) or os.path.sep in name:
        return next(iter(models.read_card(name)["modalities"]))
    installed = models.catalog()
    return next(iter(installed[name][1]["modalities"])) if name in installed else "any"


def _demo(arguments) -> int:
    folder = Path(arguments.output)
    if not folder.is_dir():
        if folder.exists() or not folder.absolute().parent.is_dir():
            raise InputError(f"{folder} cannot be made; give a folder whose parent exists.")
        folder.mkdir()
    pair = Path(__file__).parent / "demo"
    moving, fixed = pair / "moving_t1_brain.nii.gz", pair / "fixed_mni152_brain.nii.gz"
    print(f"{PROGRAM} register {moving} {fixed} -o {folder}/moving_to_fixed.tfm …")
    command = [
        "register",
        str(moving),
        str(fixed),
        "-o",
        str(folder / "moving_to_fixed.tfm"),
        "--moved",
        str(folder / "moved.nii.gz"),
        "--report",
        str(folder / "report.json"),
        "--picture",
        str(folder / "picture.png"),
    ]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    return main(command)


if __name__ == "__main__":
    sys.exit(main())
