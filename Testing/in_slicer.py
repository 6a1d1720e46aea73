"""Try the installed module in the Slicer application itself, without a window, and write down what happened.

    Slicer --no-main-window --python-script Testing/in_slicer.py

Registers the two bundled brains with a segmentation that follows, cancels one run, resamples a label volume, and writes
``in_slicer_report.json`` into the current folder: versions, figures, and what failed. Takes about a minute.
"""

from __future__ import annotations

import json
import platform
import time
import traceback
from pathlib import Path

import numpy as np
import slicer
import vtk
from SpatialDiffusionRegistrationLib import engine, torchsetup
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


def main():
    report = {"versions": versions(), "failed": []}
    logic, nodes = SpatialDiffusionRegistrationLogic(), None
    try:
        nodes = volumes()
        tryCancel(logic, nodes, report)
        tryRegister(logic, nodes, report)
    except Exception:
        report["failed"].append(traceback.format_exc())
    Path(REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"Wrote {Path(REPORT).resolve()}")
    return report


if __name__ == "__main__":
    outcome = main()
    slicer.util.exit(1 if outcome["failed"] else 0)
