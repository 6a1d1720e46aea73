"""The files that a command writes: where they go, and that none of them overwrites another or an input."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import InputError

#: What each kind of output may be called.
TRANSFORMS = (".tfm", ".txt", ".h5", ".mat", ".lta")

VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")

OUTPUTS = {  # option: (extensions, what it is called, file name in a folder)
    "output": (TRANSFORMS, "the transform", "{moving}_to_{fixed}.tfm"),
    "inverse": (TRANSFORMS, "the inverse transform", "{fixed}_to_{moving}.tfm"),
    "moved": (VOLUMES, "the moved volume", "{moving}_moved.nii.gz"),
    "report": ((".json",), "the report", "{moving}_report.json"),
    "picture": ((".png",), "the picture", "{moving}_check.png"),
}


def plan_outputs(arguments) -> list:
    """Per moving volume {option: path}; everything that can be wrong with the paths is found here."""
    from ..spatial.volume_file import check_output

    inputs = [*arguments.moving, arguments.fixed]
    inputs += [p for p in (arguments.init, arguments.moving_mask, arguments.fixed_mask) if p]
    taken = {os.path.realpath(p): p for p in inputs}
    several = len(arguments.moving) > 1
    plans = []
    for moving in arguments.moving:
        names = {"moving": _stem(moving), "fixed": _stem(arguments.fixed)}
        plan = {}
        for option, (extensions, what, pattern) in OUTPUTS.items():
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


def write_outputs(result, plan, moving, fixed) -> None:
    import numpy as np

    from ..files import written_whole
    from ..spatial import volume_file
    from ..spatial.transform_file import write_transform

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
        from ..picture import draw

        draw(result, moving, fixed, plan["picture"])


def differs(output, *inputs) -> None:
    for path in inputs:
        if path and os.path.realpath(output) == os.path.realpath(path):
            raise InputError(f"{output} would overwrite an input; choose another name for the output.")
