"""Pictures of the window in every state, beside slice views drawn by MRML, into Testing/Output/Slicer."""

from __future__ import annotations

import numpy as np
import pytest

from SlicerHarness import application
from SlicerHarness.fixtures import (
    OUTPUT,
    duplicate,
    idle,
    qt,
    quick,
    scripted,
    segmentationOf,
    slicer,
    turn,
    turnHeader,
    waitFor,
)

FOLDER = OUTPUT / "Slicer"


COLORS = "Moving: red.  Fixed: cyan.\nWhere they agree: gray."


def window(loaded, name, caption=""):
    path = FOLDER / f"{name}.png"
    runners = [tab.runner for tab in (loaded.widget.registerTab, loaded.widget.batchTab) if tab.running]
    for runner in runners:  # hold still
        runner._timer.stop()
    application.grabWindow(loaded.container, path, caption=caption)
    for runner in runners:
        runner._timer.start()
    assert path.stat().st_size > 5000


def part(loaded, name):
    application.grabPanel(loaded.container, FOLDER / f"{name}.png")


@pytest.fixture
def ready(panel, loaded, pair):
    """Brain and template chosen, something to move along."""
    for node, name in ((pair.moving, "Brain"), (pair.fixed, "MNI152 template")):
        display = node.GetScalarVolumeDisplayNode()
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(0, 0.75 * float(np.percentile(slicer.util.arrayFromVolume(node), 99.8)))
        node.SetName(name)
    segmentationOf(pair.moving, "Brain segmentation")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Landmarks")
    p = panel._parameterNode
    p.movingVolume, p.fixedVolume = pair.moving, pair.fixed
    slicer.util.setSliceViewerLayers(background=pair.fixed, foreground=pair.moving, foregroundOpacity=0.5, fit=True)
    idle()
    return panel


def test_pictures_of_registering(ready, loaded, pair):
    ui = ready.ui
    ui.colorBox.setChecked(True)
    window(loaded, "1_ready", COLORS)
    ui.colorBox.setChecked(False)
    ui.alsoMoveList.item(0).setCheckState(qt.Qt.Checked)
    ui.registerButton.click()
    frames = []
    original = ready.registerTab.onStep
    ready.registerTab.runner._onStep = lambda step: (frames.append(step), original(step))
    waitFor(ready, lambda: len(frames) >= 5)  # in mid-glide
    window(loaded, "2_running")
    waitFor(ready)
    idle()
    ui.colorBox.setChecked(True)
    window(loaded, "3_registered", COLORS)
    ui.beforeButton.click()
    window(loaded, "4_before", "Before:\n" + COLORS)
    ui.beforeButton.click()
    ui.checkerboardBox.setChecked(True)
    window(loaded, "5_checkerboard", "Squares of either volume:\nedges continue across them.")
    ui.checkerboardBox.setChecked(False)
    ui.advancedSection.collapsed = False
    part(loaded, "6_advanced")
    ready._parameterNode.movingMask = slicer.util.getNode("Brain segmentation")
    part(loaded, "7_one_segment_as_mask")
    ready._parameterNode.movingMask = None
    ui.advancedSection.collapsed = True
    pair.moving.HardenTransform()
    idle()
    part(loaded, "8_not_true_any_more")


def test_pictures_of_undo_and_landmarks(ready, loaded, pair, monkeypatch):
    scripted(monkeypatch, ready, target=np.eye(4), probability=0.97, similarity_before=0.21, similarity_after=0.78)
    p = ready._parameterNode
    for name, shift in (("movingLandmarks", 0.0), ("fixedLandmarks", 0.8)):
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
        for index in range(4):
            points.AddControlPointWorld(10.0 * index, 5.0, shift * index)
        setattr(p, name, points)
    ready.ui.registerButton.click()
    waitFor(ready)
    idle()
    part(loaded, "9_landmarks_and_probability")
    ready.ui.undoButton.click()
    part(loaded, "10_undone")


def test_pictures_of_trouble(ready, loaded, pair, monkeypatch):
    slicer.util.updateVolumeFromArray(pair.moving, np.full((20, 20, 20), 5, np.uint8))
    ready.ui.registerButton.click()
    waitFor(ready)
    part(loaded, "11_bad_volume")
    ready._parameterNode.movingVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    part(loaded, "12_the_button_says_why")

    import importlib.metadata

    def noTorch(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", noTorch)
        loaded.enter()
        part(loaded, "13_without_torch")
    slicer.mrmlScene.Clear()
    loaded.enter()
    part(loaded, "14_empty")


def test_pictures_of_a_batch(ready, loaded, pair, monkeypatch, tmp_path):
    for name in ("results", "scans"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    ready.ui.batchFolderPath.currentPath, ready.ui.batchOutputPath.currentPath = "scans", "results"
    slicer.util.addVolumeFromArray(np.full((20, 20, 20), 7.0), name="Constant volume")
    quick(ready)
    second = duplicate(pair.moving, "Second brain")
    turnHeader(second, turn(40))
    ready.ui.tabs.setCurrentIndex(1)
    ready.ui.batchAddSceneButton.click()
    ready.ui.batchRunButton.click()
    waitFor(ready, lambda: ready.batchTab.items[2].progress)
    window(loaded, "15_batch_running")
    waitFor(ready)
    ready.ui.batchTable.selectRow(2)
    ready.ui.batchLookButton.click()
    idle()
    ready.ui.colorBox.setChecked(True)
    window(loaded, "16_batch_row", "The selected row.\n" + COLORS)
    ready.ui.colorBox.setChecked(False)
    ready.ui.batchFolderPath.currentPath = ""
    ready.ui.tabs.setCurrentIndex(0)


def test_pictures_of_a_sequence(ready, loaded, pair):
    from test_slicer_sequences import SHIFTS, sequenceOf

    sequence, _browser = sequenceOf(SHIFTS, "Perfusion")
    ready.ui.tabs.setCurrentIndex(2)
    ready._parameterNode.sequence = sequence
    idle()
    ready.ui.sequenceRunButton.click()
    waitFor(ready, lambda: not ready.sequenceTab.running)
    part(loaded, "17_sequence")
    ready.ui.tabs.setCurrentIndex(0)


def test_pictures_of_warnings(ready, loaded, pair, monkeypatch):
    said = (
        "The qform and the sform of brain.nii.gz place it up to 10 mm apart; the qform is used, as in Slicer and ITK."
    )
    scripted(monkeypatch, ready, target=np.eye(4), probability=0.6, confidence="fair", warnings=[said])
    ready.ui.registerButton.click()
    waitFor(ready)
    idle()
    part(loaded, "18_warnings")
