"""``spatial-diffusion apply``: move volumes, segmentations, points and surfaces by a transform."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import extension, written_whole
from .outputs import POINTS, SEGMENTATION, VOLUMES, differs, is_folder
from .parser import PROGRAM, Commands, UsageError, add_command
from .selection import volume_files

if TYPE_CHECKING:
    import numpy as np

APPLY = """\
Moves each INPUT by TRANSFORM. Volumes are resampled on the voxels of the reference; use nearest for label maps: their
type and values are kept. Of a 4D file every volume is moved; FILE@N takes one. Segmentations of 3D Slicer (.seg.nrrd)
keep their segments' names and colors. Points and surfaces (.mrk.json, .fcsv, .vtk, .vtp, .vtu, .stl, .ply) need no
reference. With several INPUTs the output is a folder.
"""

APPLY_EXAMPLES = """\
EXAMPLES
  spatial-diffusion apply brain_to_template.tfm labels.nii.gz --reference template.nii.gz -o labels_moved.nii.gz \\
      --interpolation nearest
  spatial-diffusion apply brain_to_template.tfm fa.nii.gz md.nii.gz --reference template.nii.gz -o moved/
  spatial-diffusion apply brain_to_template.tfm landmarks.mrk.json -o landmarks_moved.mrk.json
"""


#: What is said where labels were interpolated.
_BLENDED = "it looks like a label map, and its labels were blended into others; --interpolation nearest keeps them."

#: What is said where nothing is left of what was moved.
_EMPTY = (
    "what was moved lies wholly outside the voxels of {reference}, so the result is empty; look whether the transform "
    "belongs to these volumes and which way it goes (--invert)."
)


def add_parser(commands: Commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(commands, "apply", "move volumes, segmentations, points", APPLY, APPLY_EXAMPLES)
    parser.add_argument("transform", metavar="TRANSFORM", help="transform, moving to fixed")
    parser.add_argument(
        "input", nargs="+", metavar="INPUT", help="volume(s), segmentations, points or surfaces to move"
    )
    parser.add_argument("--reference", metavar="FIXED", help="volume whose voxels moved volumes get")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="what is moved, or a folder")
    parser.add_argument(
        "--interpolation",
        default="linear",
        choices=("linear", "nearest", "cubic"),
        metavar="KIND",
        help="linear, nearest (label maps) or cubic (default: linear)",
    )
    parser.add_argument(
        "--background",
        type=float,
        metavar="VALUE",
        help="what lies outside the volume's field of view (default: 0, in CT air)",
    )
    parser.add_argument("--invert", action="store_true", help="apply the inverse")
    parser.add_argument("--quiet", action="store_true", help="do not say what was written; warnings remain")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    inputs = volume_files(arguments.input, leave_out=(arguments.reference,))
    outputs = _outputs(arguments, inputs)
    from ..inputs import as_volume

    reference = as_volume(arguments.reference, "reference", keep_type=True) if arguments.reference else None
    failed = 0
    for source, target in zip(inputs, outputs):
        try:
            said, warnings = _move(arguments, source, target, reference)
        except InputError as error:
            if len(inputs) == 1:
                raise
            print(f"{PROGRAM}: {error}", file=sys.stderr)  # one that is bad does not stop the others
            failed += 1
            continue
        for warning in warnings:
            print(f"{PROGRAM}: warning: {source}: {warning}", file=sys.stderr)
        if not arguments.quiet:
            print(f"wrote {target} ({said})")
    return 1 if failed else 0


def _move(arguments: argparse.Namespace, source: str, target: str, reference: Any) -> tuple[str, Sequence[str]]:
    """Write ``source``, moved, to ``target``; what to say of it, and the warnings of its header."""
    from ..spatial.intensity import shows_labels
    from ..spatial.point_file import extension_of, move_points
    from ..spatial.segmentation_file import is_segmentation, load_segmentation, save_segmentation
    from ..spatial.volume_file import check_grid, load_frames

    if extension_of(source):
        move_points(source, target, _matrix(arguments, None, reference))
        return "points and normals moved", ()
    size = "×".join(map(str, reference.shape))
    if is_segmentation(source):
        segments = load_segmentation(source)
        matrix = _matrix(arguments, segments.layers[0], reference)
        save_segmentation(segments.moved(reference, matrix), target)
        empty = _where_empty(segments.layers[0], reference, matrix)
        return f"segments on {size} voxels of {reference.name}", (*segments.layers[0].warnings, *empty)
    unfit = check_grid(reference, target)
    beside = os.path.dirname(os.path.abspath(target))
    frames = load_frames(source, keep_type=arguments.interpolation == "nearest", scratch=beside)
    first = frames[0]  # of a 4D file it is read anew each time
    matrix = _matrix(arguments, first, reference)
    _write_moved(arguments, frames, source, target, reference, matrix)
    many = f"{len(frames)} volumes, " if len(frames) > 1 else ""
    said = f"{many}{size} voxels of {reference.name}, {arguments.interpolation}"
    blended = arguments.interpolation != "nearest" and shows_labels(first.data)
    told = [*([unfit] if unfit else []), *([_BLENDED] if blended else [])]
    return said, (*first.warnings, *told, *_where_empty(first, reference, matrix))


def _where_empty(moved: Any, reference: Any, matrix: np.ndarray) -> tuple[str, ...]:
    """A warning where nothing of a volume that ``matrix`` (4×4, RAS mm) moves lies on the reference's voxels."""
    from ..spatial.volume import overlaps

    return () if overlaps(moved, reference, matrix) else (_EMPTY.format(reference=reference.name),)


def _matrix(arguments: argparse.Namespace, moving: Any, reference: Any) -> np.ndarray:
    from ..spatial import geometry
    from ..spatial.transform_file import read_transform

    pair = (reference, moving) if arguments.invert else (moving, reference)
    matrix = read_transform(arguments.transform, moving=pair[0], fixed=pair[1])
    return geometry.inverse(matrix) if arguments.invert else matrix


def _outputs(arguments: argparse.Namespace, inputs: list[str]) -> list[str]:
    """A file for each input; everything that can be wrong with the paths is found here."""
    from ..spatial.file_names import unique_names
    from ..spatial.volume_file import check_output

    path = arguments.output
    if not is_folder(path):
        if len(inputs) > 1:
            raise InputError(f"Several inputs need a folder; write {path[: -len(extension(path))]}/ instead of {path}.")
        outputs = [path]
    else:
        if not os.path.isdir(path):
            parent = os.path.dirname(os.path.abspath(path.rstrip("/" + os.sep)))
            if os.path.exists(path) or not os.path.isdir(parent):
                raise InputError(f"{path} cannot be made a folder; give one whose parent exists.")
            os.mkdir(path)
        names = zip(unique_names(inputs), map(_ending, inputs))
        outputs = [os.path.join(path, f"{name}_moved{ending or '.nii.gz'}") for name, ending in names]
    for source, output in zip(inputs, outputs):
        own = _ending(source)
        if own and not output.lower().endswith(own):
            raise InputError(f"{output} must end in {own}, as {source} does.")
        if arguments.reference is None and own in ("", SEGMENTATION):
            raise UsageError(f"{source} is moved onto the voxels of another volume; give it by --reference.")
        check_output(output, () if own else VOLUMES, "what is moved")
        differs(output, *inputs, arguments.reference, arguments.transform)
    return outputs


def _ending(path: str) -> str:
    """The ending that a moved file must share with its source: of points and segmentations, else none."""
    return next((ending for ending in (*POINTS, SEGMENTATION) if path.lower().endswith(ending)), "")


def _write_moved(
    arguments: argparse.Namespace, frames: Sequence[Any], source: str, target: str, reference: Any, matrix: np.ndarray
) -> None:
    """Write volumes of one grid moved by ``matrix`` (4×4, RAS mm): one, or several as a 4D file, one by one."""
    from ..spatial.volume import resample
    from ..spatial.volume_file import NIFTI, save
    from ..spatial.volume_io.nifti import written_frames

    def moved(index: int) -> Any:
        return resample(frames[index], reference, matrix, arguments.interpolation, arguments.background)

    if len(frames) == 1:
        save(moved(0), target)
        return
    if extension(target) not in NIFTI:
        raise InputError(f"{source} is 4D, and only NIfTI (.nii, .nii.gz) is written in 4D; rename {target}.")
    first = moved(0).storable()
    step = _time_step(source, frames)
    with written_whole(target) as part, written_frames(str(part), reference, len(frames), first.dtype, step) as write:
        write(first)
        for index in range(1, len(frames)):
            write(moved(index).data)


def _time_step(source: str, frames: Sequence[Any]) -> tuple[float, str]:
    """Time between the volumes of a 4D file, and its unit; 1 second where the file does not say."""
    from ..spatial.volume_file import NIFTI

    if extension(source) not in NIFTI:
        return getattr(frames, "interval", None) or 1.0, "sec"
    import nibabel

    header: Any = nibabel.load(source).header
    return float(header.get_zooms()[3]), header.get_xyzt_units()[1]
