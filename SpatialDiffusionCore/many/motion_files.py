"""What ``spatial-diffusion motion`` writes: the corrected series, transforms for ITK, FSL and AFNI, a table and a plot.

Names follow BIDS derivatives and fMRIPrep: of ``sub-01_task-rest_bold.nii.gz`` come

- ``sub-01_task-rest_desc-motion_bold.nii.gz``: the corrected series, interpolated once;
- ``sub-01_task-rest_desc-motion_timeseries.tsv`` (and .json): trans_x … rot_z, framewise_displacement, …;
- ``sub-01_task-rest_desc-motion_plot.svg``: the same drawn;
- ``sub-01_task-rest_desc-motion_mean.nii.gz``: the mean of the corrected series;
- ``sub-01_task-rest_desc-motion_xfm.mat/MAT_0000`` …: FSL's matrices, frame → reference (as mcflirt's);
- ``sub-01_task-rest_desc-motion_xfm.itk/frame_0000.tfm`` …: ITK's, which resample the frame on the reference;
- ``sub-01_task-rest_desc-motion_xfm.aff12.1D``: AFNI's, reference → frame coordinates, one line a frame.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Callable

import numpy as np

from ..files import written_whole
from ..spatial import volume_file
from ..spatial.transform_file import write_transform
from ..spatial.transform_io import afni
from ..spatial.volume import Grid, Volume
from ..spatial.volume_io import nifti
from .motion import SeriesRegistration
from .motion_plot import plot

COLUMNS = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


def names(folder, series_name: str) -> dict[str, Path]:
    """The path of each output in ``folder``."""
    stem = volume_file.stem(series_name)
    stem = stem[: -len(".seq")] if stem.lower().endswith(".seq") else stem
    head, _, suffix = stem.rpartition("_")
    if not head or not suffix.isalpha():
        head, suffix = stem, "series"
    base = Path(folder) / f"{head}_desc-motion"
    endings = {
        "series": f"_{suffix}.nii.gz",
        "mean": "_mean.nii.gz",
        "table": "_timeseries.tsv",
        "table_facts": "_timeseries.json",
        "plot": "_plot.svg",
        "fsl": "_xfm.mat",
        "itk": "_xfm.itk",
        "afni": "_xfm.aff12.1D",
    }
    return {key: Path(f"{base}{ending}") for key, ending in endings.items()}


def write_all(result: SeriesRegistration, folder, on_frame: Callable[[int, int], None] | None = None) -> dict:
    """Write everything about a series into a folder that exists; returns the paths (see the top of this file).

    on_frame(index, count): called after each corrected frame.
    """
    paths = names(folder, result.series.name)
    write_table(result, paths["table"], paths["table_facts"])
    with written_whole(paths["plot"]) as temporary:
        Path(temporary).write_text(plot(result), encoding="utf-8")
    _write_transforms(result, paths)
    write_series(result, paths["series"], paths["mean"], on_frame)
    return paths


def write_table(result: SeriesRegistration, path, facts_path=None) -> None:
    """The motion as a tab-separated table with BIDS names, a line a frame; beside it what the columns mean (JSON)."""
    lines = ["\t".join((*COLUMNS, "framewise_displacement", "similarity", "overlap", "precision", "doubtful"))]
    rows = zip(result.parameters, result.framewise_displacement, result.similarity, result.overlap, result.precision)
    for index, (six, displacement, *others) in enumerate(rows):
        numbers = [*six, displacement, *others]
        words = ["n/a" if not np.isfinite(v) else f"{v:.6f}" for v in numbers]
        lines.append("\t".join([*words, str(int(index in result.doubts))]))
    with written_whole(path) as temporary:
        Path(temporary).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if facts_path is not None:
        with written_whole(facts_path) as temporary:
            Path(temporary).write_text(json.dumps(_facts(result), indent=2) + "\n", encoding="utf-8")


def _facts(result: SeriesRegistration) -> dict:
    axes = {"x": "right", "y": "front", "z": "up"}
    facts: dict = {
        f"trans_{a}": {"Description": f"Shift of the tissue's center to the {way}", "Units": "mm"}
        for a, way in axes.items()
    }
    facts.update(
        {f"rot_{a}": {"Description": f"Rotation about the {a} axis (RAS, x first)", "Units": "rad"} for a in axes}
    )
    facts["framewise_displacement"] = {
        "Description": "Sum of the absolute changes from the frame before, rotations as arcs on a sphere "
        "(Power et al., NeuroImage 59:2142, 2012)",
        "SphereRadius": result.radius,
        "Units": "mm",
    }
    facts["similarity"] = {"Description": "Correlation with the mean frame over the tissue, 0 to 1"}
    facts["overlap"] = {"Description": "Share of the tissue that is in view in both, 0 to 1"}
    facts["precision"] = {"Description": "Random error, from how far two halves of the voxels disagree", "Units": "mm"}
    facts["doubtful"] = {"Description": "1 where the frame should be looked at", "Reasons": result.doubts}
    facts["Series"] = {
        "Name": result.series.name,
        "ReferenceFrame": result.reference,
        "Direction": "frame to reference",
        "CenterRAS": result.center.tolist(),
        "Transform": result.transform,
        "RepetitionTime": result.series.interval,
        "Warnings": list(result.warnings),
    }
    return facts


def _write_transforms(result: SeriesRegistration, paths: dict) -> None:
    grid = Volume(np.broadcast_to(np.zeros(1, np.uint8), result.series.shape), result.series.voxel_to_ras, "frame")
    for key in ("fsl", "itk"):
        paths[key].mkdir(exist_ok=True)
    for index, matrix in enumerate(result.matrices):
        write_transform(matrix, paths["itk"] / f"frame_{index:04d}.tfm", moving=grid, fixed=grid)
        # FSL's programs look for names without an ending.
        named = paths["fsl"] / f"MAT_{index:04d}.mat"
        write_transform(matrix, named, moving=grid, fixed=grid, format="flirt")
        os.replace(named, paths["fsl"] / f"MAT_{index:04d}")
    with written_whole(paths["afni"]) as temporary:
        Path(temporary).write_bytes(afni.written(result.matrices, grid, grid))


def write_series(result: SeriesRegistration, path, mean_path=None, on_frame=None) -> None:
    """The corrected series as a 4D NIfTI of float32, frame by frame, and its mean; memory is that of a frame."""
    series = result.series
    grid = Grid(series.shape, series.voxel_to_ras)
    total = np.zeros(series.shape)
    step = series.interval or 1.0, "sec"
    with written_whole(path) as part, nifti.written_frames(str(part), grid, series.count, np.float32, step) as write:
        for index in range(series.count):
            values = result.corrected(index)
            write(values)
            total += np.nan_to_num(values)
            if on_frame is not None:
                on_frame(index, series.count)
    if mean_path is not None:
        volume_file.save(Volume((total / series.count).astype(np.float32), series.voxel_to_ras, "mean"), mean_path)
