"""``spatial-diffusion apply``: move volumes by a transform."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import extension, written_whole
from .outputs import VOLUMES, differs, is_folder
from .parser import Commands, add_command
from .selection import unique_names, volume_files

if TYPE_CHECKING:
    import numpy as np

APPLY = """\
Resamples each INPUT, moved by TRANSFORM, on the voxels of the reference. Use nearest for label maps: their type and
values are kept. Of a 4D NIfTI file every volume is moved; FILE@N takes one. With several INPUTs the output is a folder.
"""

APPLY_EXAMPLES = """\
EXAMPLES
  spatial-diffusion apply brain_to_template.tfm labels.nii.gz --reference template.nii.gz -o labels_moved.nii.gz \\
      --interpolation nearest
  spatial-diffusion apply brain_to_template.tfm fa.nii.gz md.nii.gz --reference template.nii.gz -o moved/
"""


def add_parser(commands: Commands) -> None:
    """Put the command's parser among ``commands``."""
    parser = add_command(commands, "apply", "move volumes or label maps by a transform", APPLY, APPLY_EXAMPLES)
    parser.add_argument("transform", metavar="TRANSFORM", help="transform, moving to fixed")
    parser.add_argument("input", nargs="+", metavar="INPUT", help="volume(s) to move")
    parser.add_argument("--reference", required=True, metavar="FIXED", help="volume whose voxels the output gets")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="moved volume, or a folder")
    parser.add_argument(
        "--interpolation",
        default="linear",
        choices=("linear", "nearest", "cubic"),
        metavar="KIND",
        help="linear, nearest (label maps) or cubic (default: linear)",
    )
    parser.add_argument("--invert", action="store_true", help="apply the inverse")
    parser.add_argument("--quiet", action="store_true", help="do not say what was written")


def run(arguments: argparse.Namespace) -> int:
    """Carry the command out; returns the exit status."""
    inputs = volume_files(arguments.input, leave_out=(arguments.reference,))
    outputs = _outputs(arguments, inputs)
    from ..inputs import as_volume
    from ..spatial import geometry
    from ..spatial.transform_file import read_transform

    nearest = arguments.interpolation == "nearest"
    reference = as_volume(arguments.reference, "reference", keep_type=True)
    for source, target in zip(inputs, outputs):
        frames = Frames(source, keep_type=nearest)
        matrix = read_transform(arguments.transform, moving=frames[0], fixed=reference)
        if arguments.invert:
            matrix = geometry.inverse(matrix)
        frames.write_moved(target, reference, matrix, arguments.interpolation)
        if not arguments.quiet:
            many = f"{len(frames)} volumes, " if len(frames) > 1 else ""
            size = "×".join(map(str, reference.shape))
            print(f"wrote {target} ({many}{size} voxels of {reference.name}, {arguments.interpolation})")
    return 0


def _outputs(arguments: argparse.Namespace, inputs: list[str]) -> list[str]:
    """A file for each input; everything that can be wrong with the paths is found here."""
    from ..spatial.volume_file import check_output

    path = arguments.output
    if not is_folder(path):
        if len(inputs) > 1:
            raise InputError(f"Several volumes need a folder; write {os.path.splitext(path)[0]}/ instead of {path}.")
        outputs = [path]
    else:
        if not os.path.isdir(path):
            parent = os.path.dirname(os.path.abspath(path.rstrip("/" + os.sep)))
            if os.path.exists(path) or not os.path.isdir(parent):
                raise InputError(f"{path} cannot be made a folder; give one whose parent exists.")
            os.mkdir(path)
        outputs = [os.path.join(path, f"{name}_moved.nii.gz") for name in unique_names(inputs)]
    for output in outputs:
        check_output(output, VOLUMES, "the moved volume")
        differs(output, *inputs, arguments.reference, arguments.transform)
    return outputs


class Frames:
    """The volumes of a file: one, or those of a 4D NIfTI file, each read when it is asked for."""

    def __init__(self, path: str, keep_type: bool):
        self.path, self.keep_type = path, keep_type
        self._series = _series(path)

    def __len__(self) -> int:
        return self._series.shape[3] if self._series is not None else 1

    def __getitem__(self, index: int) -> Any:
        """Volume ``index`` (from 0)."""
        from ..inputs import as_volume

        if self._series is None:
            return as_volume(self.path, "moving", self.keep_type)
        return as_volume(self._series.slicer[..., index : index + 1], "moving", self.keep_type)

    def write_moved(self, target: str, reference: Any, matrix: np.ndarray, interpolation: str) -> None:
        """Write all of them moved by ``matrix`` (4×4, RAS mm), on the voxels of ``reference``."""
        from ..spatial.volume import resample
        from ..spatial.volume_file import save

        if self._series is None:
            save(resample(self[0], reference, matrix, interpolation), target)
            return
        import nibabel
        import numpy as np

        if extension(target) not in (".nii", ".nii.gz"):
            raise InputError(f"{self.path} is 4D, and only NIfTI (.nii, .nii.gz) is written in 4D; rename {target}.")
        moved = [resample(self[index], reference, matrix, interpolation) for index in range(len(self))]
        image = moved[0].to_nibabel()
        series = nibabel.Nifti1Image(np.stack([one.data for one in moved], -1), None, image.header)
        series.header.set_zooms((*image.header.get_zooms()[:3], *self._series.header.get_zooms()[3:4]))
        series.header.set_xyzt_units("mm", self._series.header.get_xyzt_units()[1])
        with written_whole(target) as temporary:
            nibabel.save(series, os.fspath(temporary))


def _series(path: str) -> Any:
    """nibabel's image of a 4D NIfTI file with more than one volume, else None."""
    if extension(path) not in (".nii", ".nii.gz") or not os.path.isfile(path):
        return None
    import nibabel

    try:
        image: Any = nibabel.load(path)
    except Exception:  # whatever is wrong with the file is said where it is read as a volume
        return None
    several = len(image.shape) == 4 and image.shape[3] > 1
    return image if several else None
