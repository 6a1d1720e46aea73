"""What ``test_slicer_*.py`` call: the application, data, and what a person does.  The fixtures are in window.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("slicer", reason="the Slicer tests need the slicer-core wheel: pip install slicer-core")
pytest.importorskip("PySide6", reason="the Slicer tests need PySide6: pip install PySide6-Essentials")

from . import application  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = application.MODULE
OUTPUT = REPOSITORY / "Testing" / "Output"

slicer = application.start()
import qt  # noqa: E402, F401  (found beside application.py, for the tests to import from here)

if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))


def settleViews():
    """Let the slice logics finish what they derive from zoom and size, as in views that have been drawn once."""
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.SetFieldOfView(240.0, 240.0, 1.0)


# Data

DEMO = REPOSITORY / "SpatialDiffusionCore" / "demo"
BRAIN, TEMPLATE = DEMO / "moving_t1_brain.nii.gz", DEMO / "fixed_mni152_brain.nii.gz"


def turn(degrees=25.0, shift=(15.0, -10.0, 8.0)):
    """A rotation about an oblique axis and a shift: 4x4 RAS, mm."""
    import vtk

    transform = vtk.vtkTransform()
    transform.Translate(*shift)
    transform.RotateWXYZ(degrees, 0.3, 0.2, 0.93)
    return slicer.util.arrayFromVTKMatrix(transform.GetMatrix())


def turnHeader(volumeNode, matrix):
    """Move a volume by changing its header (not by a transform node)."""
    import vtk

    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    volumeNode.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix @ slicer.util.arrayFromVTKMatrix(ijkToRas)))


def duplicate(volumeNode, name):
    """A second volume node with the same voxels and header, under no transform."""
    import vtk

    ijkToRas = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(ijkToRas)
    return slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(volumeNode).copy(), ijkToRAS=ijkToRas, name=name)


def brainMask(volumeNode):
    """Tissue of a skull-stripped volume: True where it is not background, in i, j, k order."""
    return slicer.util.arrayFromVolume(volumeNode).transpose(2, 1, 0) > 0


def segmentationOf(volumeNode, name="Brain mask"):
    """A segmentation with one segment: the brain."""
    labels = slicer.util.addVolumeFromArray(
        (slicer.util.arrayFromVolume(volumeNode) > 0).astype("uint8"), nodeClassName="vtkMRMLLabelMapVolumeNode"
    )
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    labels.SetIJKToRASMatrix(matrix)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
    slicer.mrmlScene.RemoveNode(labels)
    return node


def sameAsSeen(volumeNode, otherNode):
    """Greatest distance in mm, over the corners, between where two volumes of equal voxels are seen."""
    import numpy as np
    from SpatialDiffusionRegistrationLib.scene import voxelToWorld

    size = slicer.util.arrayFromVolume(volumeNode).shape[::-1]
    corners = np.array([[i, j, k, 1] for i in (0, size[0]) for j in (0, size[1]) for k in (0, size[2])], float).T
    return np.linalg.norm(((voxelToWorld(volumeNode) - voxelToWorld(otherNode)) @ corners)[:3], axis=0).max()


def waitFor(panel, until=None, seconds=900):
    """Let the window work until its run ends, or until `until()`."""
    import time

    end = time.monotonic() + seconds
    done = until or (lambda: not (panel.registerTab.running or panel.batchTab.running))
    while not done():
        slicer.app.processEvents()
        assert time.monotonic() < end, "the run did not end"


QUICK = {"steps": 1, "polish": False}
"""Settings of runs whose accuracy is not what is tested: half the time, and still within 1.5 mm here."""


def quick(panel):
    """Choose the quick settings in the window."""
    from SpatialDiffusionRegistrationLib.parameters import Polish

    panel._parameterNode.steps, panel._parameterNode.polish = QUICK["steps"], Polish.OFF


def sceneState():
    """Everything in the scene that a cancelled run must leave as it was, without saving it."""
    state = []
    for index in range(slicer.mrmlScene.GetNumberOfNodes()):
        node = slicer.mrmlScene.GetNthNode(index)
        entry = [node.GetID(), node.GetName(), node.GetClassName()]
        if node.IsA("vtkMRMLTransformableNode"):
            entry.append(node.GetTransformNodeID())
        if node.IsA("vtkMRMLTransformNode"):
            entry.append(slicer.util.arrayFromTransformMatrix(node).tolist())
            entry += [
                node.GetNodeReferenceID(node.GetMovingNodeReferenceRole()),
                node.GetNodeReferenceID(node.GetFixedNodeReferenceRole()),
                [(name, node.GetAttribute(name)) for name in node.GetAttributeNames()],
            ]
        if node.IsA("vtkMRMLSliceCompositeNode"):
            entry += [
                node.GetBackgroundVolumeID(),
                node.GetForegroundVolumeID(),
                node.GetForegroundOpacity(),
                node.GetCompositing(),
            ]
        if node.IsA("vtkMRMLSliceNode"):
            entry += [node.GetFieldOfView(), slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).tolist()]
        state.append(entry)
    return state


def savedScene():
    """The scene as a .mrml file would hold it, line by line and attribute by attribute."""
    slicer.mrmlScene.SetSaveToXMLString(1)
    slicer.mrmlScene.Commit()
    slicer.mrmlScene.SetSaveToXMLString(0)
    return slicer.mrmlScene.GetSceneXMLString().replace('" ', '"\n').splitlines()


SHIFT = (10.0, 20.0, 30.0)
"""Where the scripted steps lead by default: mm, RAS."""


def scripted(monkeypatch, panel, target=None, raises=None, **quality):
    """Steps that are known beforehand in place of the core's: six, toward `target` (4x4 RAS; a shift by default).

    :param raises: an exception that the last step raises.
    :param quality: fields of the result's quality that are to differ.
    """
    import numpy as np

    engine = panel.registerTab.__class__.__init__.__globals__["Task"].run.__globals__["engine"]
    goal = np.eye(4)
    goal[:3, 3] = SHIFT
    goal = goal if target is None else np.asarray(target, float)
    calls = []

    def steps(moving, fixed, settings, **options):
        calls.append(SimpleNamespace(moving=moving, fixed=fixed, settings=settings, **options))
        for index in range(1, 7):
            matrix = np.eye(4)
            matrix[:3, 3] = goal[:3, 3] * index / 6
            if raises is not None and index == 6:
                raise raises
            yield SimpleNamespace(index=index, count=6, stage="Scripted", matrix=matrix)
        return _registration(moving, fixed, goal, quality)

    monkeypatch.setattr(engine, "steps", steps)
    return calls


def _registration(moving, fixed, matrix, quality):
    """A Registration of the core."""
    import numpy as np

    from SpatialDiffusionCore.pipeline.confidence import Quality
    from SpatialDiffusionCore.result import Registration

    values = {
        "similarity_before": 0.2,
        "similarity_after": 0.9,
        "overlap": 1.0,
        "spread_mm": 0.5,
        "confidence": "good",
        "sides": (1.0, 1.0),
        "probability": 0.97,
        **quality,
    }
    return Registration(
        matrix=matrix.copy(),
        transform="affine",
        steps=[],
        quality=Quality(**values),
        model="scripted",
        modality=("any", "any"),
        recognized=(True, True),
        sampler="fast",
        seconds=0.1,
        polished=True,
        center=np.zeros(3),
        moving=moving.name,
        fixed=fixed.name,
        record={"moving_file": moving.path, "fixed_file": fixed.path, "device": "cpu", "settings": {}},
        volumes=(moving, fixed),
    )


def smallVolume(name, seed=0, shape=(20, 22, 24), className=None):
    """A small volume of noise, with voxels of 1 mm."""
    import numpy as np

    data = np.random.default_rng(seed).random(shape).astype(np.float32)
    return slicer.util.addVolumeFromArray(data, name=name, nodeClassName=className)


def add(className, name):
    """A new node of the scene."""
    return slicer.mrmlScene.AddNewNodeByClass(className, name)


def addTransform(name, shift=(0, 0, 0)):
    """A new linear transform node that shifts by `shift` (mm, RAS)."""
    import numpy as np

    node = add("vtkMRMLLinearTransformNode", name)
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    slicer.util.updateTransformMatrixFromArray(node, matrix)
    return node


def register(panel):
    """Press Register and wait until it is done; nothing may be complained about."""
    assert panel.ui.registerButton.enabled, panel.ui.registerButton.toolTip
    panel.ui.registerButton.click()
    waitFor(panel)
    assert panel.ui.messageFrame.isHidden(), panel.ui.messageLabel.text


def untilStep(panel, index=3):
    """Let the run come to a step."""
    waitFor(panel, lambda: panel.ui.progressBar.maximum > 0 and panel.ui.progressBar.value >= index)


def idle():
    """Let the window do what it left for when it is idle."""
    for _ in range(3):
        slicer.app.processEvents()
