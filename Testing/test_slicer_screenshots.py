"""Pictures of the window in every state, beside slice views drawn by MRML, into Testing/Output/Slicer."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from SlicerHarness import application  # noqa: E402
from SlicerHarness.fixtures import (  # noqa: E402, F401
    OUTPUT,
    duplicate,
    exceptionsFail,
    loaded,
    pair,
    panel,
    qt,
    quick,
    scene,
    segmentationOf,
    slicer,
    turn,
    turnHeader,
    waitFor,
)

FOLDER = OUTPUT / "Slicer"


def window(loaded, name, caption="Moving: red.  Fixed: cyan.\nWhere they agree: gray."):  # noqa: F811
    path = FOLDER / f"{name}.png"
    runners = [tab.runner for tab in (loaded.widget.registerTab, loaded.widget.batchTab) if tab.running]
    for runner in runners:  # hold still
        runner._timer.stop()
    application.grabWindow(loaded.container, path, caption=caption)
    for runner in runners:
        runner._timer.start()
    assert path.stat().st_size > 5000


@pytest.fixture
def ready(panel, loaded, pair):  # noqa: F811
    """Brain and template chosen, something to move along, brain and template in warm and cold colors."""
    for node, color, name in ((pair.moving, "Red", "Brain"), (pair.fixed, "Cyan", "MNI152 template")):
        display = node.GetScalarVolumeDisplayNode()
        display.SetAndObserveColorNodeID(f"vtkMRMLColorTableNode{color}")
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(0, 0.75 * float(np.percentile(slicer.util.arrayFromVolume(node), 99.8)))
        node.SetName(name)
    segmentationOf(pair.moving, "Brain segmentation")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Landmarks")
    p = panel._parameterNode
    p.movingVolume, p.fixedVolume = pair.moving, pair.fixed
    slicer.util.setSliceViewerLayers(background=pair.fixed, foreground=pair.moving, foregroundOpacity=0.5, fit=True)
    return panel


def test_pictures_of_registering(ready, loaded, pair):  # noqa: F811
    window(loaded, "1_ready")
    ready.ui.alsoMoveList.item(0).setCheckState(qt.Qt.Checked)
    ready.ui.registerButton.click()
    frames = []
    original = ready.registerTab.onStep
    ready.registerTab.runner._onStep = lambda step: (frames.append(step), original(step))
    waitFor(ready, lambda: len(frames) >= 5)  # in mid-glide
    window(loaded, "2_running")
    waitFor(ready)
    window(loaded, "3_registered")
    ready.ui.checkerboardBox.setChecked(True)
    window(loaded, "4_checkerboard", "Squares of either volume:\nedges continue across them.")
    ready.ui.checkerboardBox.setChecked(False)
    ready.ui.beforeButton.click()
    window(loaded, "5_before")
    ready.ui.beforeButton.click()
    ready.ui.advancedSection.collapsed = False
    window(loaded, "6_advanced")
    ready.ui.advancedSection.collapsed = True


def test_pictures_of_trouble(ready, loaded, pair, monkeypatch):  # noqa: F811
    window(loaded, "0_before_anything")
    slicer.util.updateVolumeFromArray(pair.moving, np.full((20, 20, 20), 5, np.uint8))
    ready.ui.registerButton.click()
    waitFor(ready)
    application.grabPanel(loaded.container, FOLDER / "7_bad_volume.png")
    ready.ui.registerButton.click()
    waitFor(ready, lambda: ready.registerTab.running)
    ready.cancel()
    application.grabPanel(loaded.container, FOLDER / "8_cancelled.png")

    import importlib.metadata

    def noTorch(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", noTorch)
        loaded.enter()
        application.grabPanel(loaded.container, FOLDER / "9_without_torch.png")
    slicer.mrmlScene.Clear()
    loaded.enter()
    application.grabPanel(loaded.container, FOLDER / "10_empty.png")


def test_pictures_of_a_batch(ready, loaded, pair):  # noqa: F811
    slicer.util.addVolumeFromArray(np.full((20, 20, 20), 7.0), name="Constant volume")
    quick(ready)
    second = duplicate(pair.moving, "Second brain")
    turnHeader(second, turn(40))
    ready.ui.tabs.setCurrentIndex(1)
    ready.ui.batchAddSceneButton.click()
    ready.ui.batchRunButton.click()
    waitFor(ready, lambda: ready.batchTab.items[2].progress)
    window(loaded, "11_batch_running")
    waitFor(ready)
    window(loaded, "12_batch_done")
    ready.ui.tabs.setCurrentIndex(0)
