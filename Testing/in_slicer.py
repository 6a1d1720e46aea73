"""Try the installed module in the Slicer application itself, without a window, and write down what happened.

    Slicer --no-main-window --python-script Testing/in_slicer.py

Registers the two bundled brains with a segmentation that follows, cancels one run, resamples a label volume, runs a
small batch with its table and review page, and writes ``in_slicer_report.json`` into the current folder: versions,
figures, and what failed. Takes about a minute.
"""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import slicer
import vtk
from SpatialDiffusionRegistrationLib import engine, torchsetup
from SpatialDiffusionRegistrationLib.change import removeWithHelpers
from SpatialDiffusionRegistrationLib.sampledata import demoPair

from SpatialDiffusionRegistration import SpatialDiffusionRegistrationLogic

REPORT = "in_slicer_report.json"


def versions():
    return {
        "slicer": slicer.app.applicationVersion,
        "revision": str(getattr(slicer.app, "revision", "")),
        "system": platform.platform(),
        "python": platform.python_version(),
        "vtk": vtk.vtkVersion().GetVTKVersion(),
        "torch": torchsetup.state().version,
        "module": engine.version(),
        "what adapting lacks": engine.missingForTraining(),
    }


def volumes():
    """The moving brain, the fixed template, and the moving brain as a segmentation and as a label volume."""
    moving, fixed = (slicer.util.loadVolume(str(path)) for path in demoPair())
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Moving labels")
    matrix = vtk.vtkMatrix4x4()
    moving.GetIJKToRASMatrix(matrix)
    labels.SetIJKToRASMatrix(matrix)
    slicer.util.updateVolumeFromArray(labels, (slicer.util.arrayFromVolume(moving) > 0).astype(np.uint8))
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Moving segmentation")
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, segmentation)
    return moving, fixed, segmentation, labels


def overlap(labels, fixed):
    """Dice of a label volume on the fixed volume's grid with the fixed brain."""
    brain = slicer.util.arrayFromVolume(fixed) > 0
    seen = slicer.util.arrayFromVolume(labels) > 0
    return float(2 * (brain & seen).sum() / (brain.sum() + seen.sum()))


def tryCancel(logic, nodes, report):
    """The scene has as many nodes as before, and the moving volume is under no transform."""
    moving, fixed, segmentation, _labels = nodes
    before = slicer.mrmlScene.GetNumberOfNodes()
    result = logic.register(moving, fixed, alsoMove=[segmentation], progress=lambda step: step.index < 2)
    report["cancel"] = {
        "returned": result,
        "nodes added": slicer.mrmlScene.GetNumberOfNodes() - before,
        "moving is where it was": moving.GetParentTransformNode() is None,
    }


def tryRegister(logic, nodes, report):
    """The segmentation follows, and lies on the template."""
    moving, fixed, segmentation, labels = nodes
    steps, begun = [], time.monotonic()
    transform = logic.register(moving, fixed, alsoMove=[segmentation, labels], progress=steps.append)
    report["register"] = {
        "seconds": round(time.monotonic() - begun, 1),
        "steps": len(steps),
        "summary": logic.result.summary,
        "matrix": slicer.util.arrayFromTransformMatrix(transform).tolist(),
        "segmentation follows": segmentation.GetParentTransformNode() is transform,
        "dice of the labels": round(overlap(logic.resample(labels, fixed), fixed), 4),
    }


def tryBatch(logic, nodes, report):
    """Two files, one of them broken, with everything that a batch writes; the scene is left as it was."""
    fixed, folder = nodes[1], Path(tempfile.mkdtemp(prefix="in-slicer-"))
    broken = folder / "broken.nii.gz"
    broken.write_bytes(b"no image")
    before, said = slicer.mrmlScene.GetNumberOfNodes(), {}
    try:
        transforms = logic.registerMany(
            [demoPair()[0], broken],
            fixed,
            transform="rigid",
            keepVolumes=False,
            outputFolder=folder,
            report=folder / "registrations.csv",
            review=folder / "review",
        )
        said["registered"] = [transform is not None for transform in transforms]
        said["table"] = (folder / "registrations.csv").read_text(encoding="utf-8").splitlines()
        said["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for transform in filter(None, transforms):
            removeWithHelpers(transform)
        said["nodes left"] = [
            slicer.mrmlScene.GetNthNode(i).GetName() for i in range(before, slicer.mrmlScene.GetNumberOfNodes())
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report["batch"] = said


def main():
    report = {"versions": versions(), "failed": []}
    logic, nodes = SpatialDiffusionRegistrationLogic(), None
    try:
        nodes = volumes()
    except Exception:
        report["failed"].append(traceback.format_exc())
    for attempt in (tryCancel, tryRegister, tryBatch) if nodes else ():
        try:  # one that fails does not hide what the others find
            attempt(logic, nodes, report)
        except Exception:
            report["failed"].append(traceback.format_exc())
    Path(REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"Wrote {Path(REPORT).resolve()}")
    return report


if __name__ == "__main__":
    outcome = main()
    slicer.util.exit(1 if outcome["failed"] else 0)
