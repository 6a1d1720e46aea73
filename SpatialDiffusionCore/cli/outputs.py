"""The files that a command writes: where they go, that none overwrites another or an input, and what was written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..failure import sentence
from ..files import extension

#: Points and surfaces, and segmentations of 3D Slicer, which ``apply`` moves in their own format.
POINTS = (".mrk.json", ".fcsv", ".vtk", ".vtp", ".vtu", ".stl", ".ply")
SEGMENTATION = ".seg.nrrd"

#: What each kind of output may be called.
TRANSFORMS = (".tfm", ".txt", ".h5", ".mat", ".lta", ".1d", ".x5", ".dcm")

VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")

OUTPUTS = {  # option: (extensions, what it is called, file name in a folder)
    "output": (TRANSFORMS, "the transform", "{moving}_to_{fixed}{ending}"),
    "inverse": (TRANSFORMS, "the inverse transform", "{fixed}_to_{moving}{ending}"),
    "moved": (VOLUMES, "the moved volume", "{moving}_moved.nii.gz"),
    "report": ((".json",), "the report", "{moving}_report.json"),
    "picture": ((".png",), "the picture", "{moving}_check.png"),
}

#: Format of a transform: (ending in a folder, what it is and who reads it).
FORMATS = {
    "itk": (".tfm", "ITK: 3D Slicer, ANTs, SimpleITK"),
    "flirt": (".mat", "FSL FLIRT"),
    "lta": (".lta", "FreeSurfer"),
    "afni": (".aff12.1D", "AFNI"),
    "x5": (".x5", "nitransforms"),
    "dicom": (".dcm", "DICOM Spatial Registration"),
    "ras": (".txt", "4×4 matrix, moving to fixed, RAS millimeters"),
}


def is_folder(path: str) -> bool:
    """Whether an output means a folder: it ends in a slash, is one, or has no extension that a file would have."""
    return path.endswith(("/", os.sep)) or os.path.isdir(path) or not extension(path)


def plan_outputs(arguments: Any, movings: Sequence[str], names: Sequence[str], fixed_name: str) -> list[dict]:
    """Per moving volume {option: path}; everything that can be wrong with the paths is found here.

    movings: the files; names: what each is called in a folder. Missing folders are made last, once all is well.
    """
    inputs = [
        path
        for path in (*movings, arguments.fixed, arguments.init, arguments.moving_mask, arguments.fixed_mask)
        if path
    ]
    taken = {os.path.realpath(path): path for path in inputs}
    ending = FORMATS[arguments.format][0] if arguments.format else ".tfm"
    folders: list[str] = []
    plans = []
    for name in names:
        plan = {}
        for option, (extensions, what, pattern) in OUTPUTS.items():
            path = getattr(arguments, option)
            if not path:
                continue
            if is_folder(path):
                folders.append(_possible_folder(path, what))
                path = os.path.join(path, pattern.format(moving=name, fixed=fixed_name, ending=ending))
            elif len(movings) > 1:
                raise InputError(
                    f"With several moving volumes {what} needs a folder; write {os.path.splitext(path)[0]}{os.sep} "
                    f"instead of {path}."
                )
            _check_file(path, extensions, what, made=folders)
            if option in ("output", "inverse"):
                chosen_format(path, arguments.format)
            real = os.path.realpath(path)
            if real in taken:
                clash = "an input" if taken[real] in inputs else "another output"
                raise InputError(f"{path} would overwrite {clash} ({taken[real]}); choose another name for {what}.")
            taken[real] = plan[option] = path
        plans.append(plan)
    for folder in dict.fromkeys(folders):
        os.makedirs(folder, exist_ok=True)
    return plans


def prepared_page(folder: str | None) -> str | None:
    """The folder of the review page in full, made; None where none is asked for. InputError where it cannot be."""
    if not folder:
        return None
    from ..review.pages import prepare_folder

    return str(prepare_folder(folder).absolute())


def _possible_folder(path: str, what: str) -> str:
    """The folder, if it is there or can be made."""
    parent = os.path.dirname(os.path.abspath(path.rstrip("/" + os.sep) or path))
    if os.path.isdir(path):
        return path
    if os.path.exists(path) or not os.path.isdir(parent):
        raise InputError(f"{path} cannot be made a folder for {what}; give one whose parent exists.")
    return path


def _check_file(path: str, extensions: Sequence[str], what: str, made: Sequence[str]) -> None:
    from ..spatial.volume_file import check_output

    folder = os.path.dirname(path)
    if folder and any(os.path.abspath(folder) == os.path.abspath(one) for one in made) and not os.path.isdir(folder):
        return  # it will be made, and the name in it is ours
    check_output(path, extensions, what)


def write_outputs(result: Any, plan: dict, moving: Any, fixed: Any, format: str | None = None) -> list[str]:
    """Write what was planned, each output whether or not another one fails. Returns a sentence for each that failed."""
    from ..files import written_whole
    from ..spatial import volume_file

    def report() -> None:
        with written_whole(plan["report"]) as temporary:
            text = json.dumps(result.report(), indent=2, ensure_ascii=False)
            Path(temporary).write_text(text + "\n", encoding="utf-8")

    def inverse() -> None:
        result.inverse().save(plan["inverse"], chosen_format(plan["inverse"], format), moving=fixed, fixed=moving)

    writers = {
        "output": lambda: result.save(
            plan["output"], chosen_format(plan["output"], format), moving=moving, fixed=fixed
        ),
        "inverse": inverse,
        "moved": lambda: volume_file.save(result.apply(moving, fixed), plan["moved"]),
        "report": report,
        "picture": lambda: result.picture(moving, fixed, plan["picture"]),
    }
    failures = []
    for option in list(plan):
        try:
            writers[option]()
        except Exception as error:  # whatever it is, the other outputs are written
            failures.append(sentence(error, f"writing {plan[option]}"))
            del plan[option]
    return failures


def chosen_format(path: str, format: str | None) -> str:
    """The format of a transform file: the one asked for, else the extension's own.

    Raises InputError where the extension cannot hold what was asked for.
    """
    from ..spatial.transform_file import FORMATS as POSSIBLE

    possible = POSSIBLE[extension(path)]
    if format and format not in possible:
        raise InputError(
            f"{path} cannot hold the format {format} ({FORMATS[format][1]}); "
            f"give it the extension {FORMATS[format][0]}."
        )
    return format or possible[0]


def described(path: str, format: str | None = None) -> str:
    """A file that was written, and for a transform what it holds and who reads it."""
    from ..spatial.transform_file import FORMATS as POSSIBLE

    if extension(path) not in POSSIBLE:
        return path
    held = chosen_format(path, format)
    text = f"{path} ({FORMATS[held][1]})"
    return text + ("; for FSL add --format flirt" if extension(path) == ".mat" and held == "itk" else "")


def differs(output: str, *inputs: str | None) -> None:
    """Raise InputError where an output would overwrite an input."""
    for path in inputs:
        if path and os.path.realpath(output) == os.path.realpath(path):
            raise InputError(f"{output} would overwrite an input; choose another name for the output.")
