"""A scene that is saved, by whatever way and whenever, holds what is the person's own, and nothing half done."""

from __future__ import annotations

import re

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    idle,
    qt,
    savedScene,
    scripted,
    slicer,
    smallVolume,
    untilStep,
    waitFor,
)


@pytest.fixture
def window(panel, monkeypatch):
    """A under a transform of the person's own, to be registered to F; S and a point list move along."""
    panel.calls = scripted(monkeypatch, panel)
    panel.A, panel.F, panel.S = (smallVolume(name, seed) for seed, name in enumerate("AFS"))
    panel.own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Own")
    slicer.util.updateTransformMatrixFromArray(panel.own, shift(1, 2, 3))
    panel.A.SetAndObserveTransformNodeID(panel.own.GetID())
    panel.p = panel._parameterNode
    panel.p.movingVolume, panel.p.fixedVolume = panel.A, panel.F
    from SpatialDiffusionRegistrationLib import parameters

    parameters.setNodeList(panel.p, parameters.ALSO_MOVE_ROLE, [panel.S])
    slicer.util.setSliceViewerLayers(background=panel.A, foreground=None)
    idle()
    return panel


def shift(*millimeters):
    matrix = np.eye(4)
    matrix[:3, 3] = millimeters
    return matrix


def withoutViews(saved):
    """The lines of a saved scene that do not belong to what the slice views show."""
    kept, skipping = [], False
    for line in saved:
        if re.match(r"\s*<\w", line):
            skipping = bool(re.match(r"\s*<(Slice|SliceComposite)\b", line))
        if not skipping:
            kept.append(line)
    return kept


@pytest.mark.parametrize("output", ["new", "own", "volume only"])
def test_a_scene_saved_in_mid_run_holds_every_node_as_it_was(window, output):
    if output == "own":
        window.p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Output")
        slicer.util.updateTransformMatrixFromArray(window.p.outputTransform, shift(0, 0, 9))
    elif output == "volume only":
        window.p.outputVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Resampled")
    idle()
    before = savedScene()
    window.ui.registerButton.click()
    untilStep(window)
    assert shown("Red").GetParentTransformNode() is not window.own  # what glides is on its way
    saved = savedScene()
    assert withoutViews(saved) == withoutViews(before)
    waitFor(window)
    assert savedScene() != before


def test_a_scene_saved_in_mid_run_is_loaded_with_everything_where_it_was(window, tmp_path):
    window.ui.registerButton.click()
    untilStep(window)
    slicer.mrmlScene.SetURL(str(tmp_path / "half.mrml"))
    for node in (window.A, window.F, window.S):
        assert slicer.util.saveNode(node, str(tmp_path / f"{node.GetName()}.nrrd"))
    assert slicer.util.saveNode(window.own, str(tmp_path / "Own.tfm"))
    assert slicer.mrmlScene.Commit()
    window.cancel()
    slicer.mrmlScene.Clear()
    slicer.mrmlScene.Connect()
    idle()
    moving = slicer.util.getNode("A")
    assert moving.GetParentTransformNode().GetName() == "Own"
    np.testing.assert_allclose(slicer.util.arrayFromTransformMatrix(moving.GetParentTransformNode()), shift(1, 2, 3))
    assert slicer.util.getNode("S").GetParentTransformNode() is None
    assert [node.GetName() for node in ownTransforms()] == ["Own"]
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 3
    # The views show the fixed volume, and nothing in place of the copy that was not saved.
    background = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetBackgroundLayer().GetVolumeNode()
    assert background is slicer.util.getNode("F") and shown("Red") is None


def ownTransforms():
    """The transforms that people see."""
    return [n for n in slicer.util.getNodesByClass("vtkMRMLLinearTransformNode") if not n.GetHideFromEditors()]


def shown(view):
    """What a slice view shows over its background."""
    return slicer.app.layoutManager().sliceWidget(view).sliceLogic().GetForegroundLayer().GetVolumeNode()


class Dialog:
    """A dialog that blocks the window, as the one for saving does; `look()` is called once it is open."""

    def __init__(self, look):
        self.dialog, self.saw = qt.QDialog(), []
        self.timer = qt.QTimer()
        self.timer.setSingleShot(True)
        self.timer.setInterval(400)
        self.timer.connect("timeout()", lambda: (self.saw.append(look()), self.dialog.accept()))

    def open(self):
        self.timer.start()
        self.dialog.exec_()
        return self.saw[0]


def test_while_a_dialog_is_open_in_mid_run_the_views_are_as_before_it(window, monkeypatch):
    before = savedScene()
    window.ui.registerButton.click()
    untilStep(window, 2)
    # The run goes on behind the dialog; here it is slow enough not to end there.
    monkeypatch.setattr(window.registerTab.runner, "_tick", lambda: None)
    timer = window.registerTab.runner._timer
    timer.stop()
    assert Dialog(savedScene).open() == before
    waitFor(window, lambda: shown("Red") is not None and shown("Red").GetHideFromEditors(), seconds=10)
    timer.start()
    waitFor(window)
    assert shown("Red") is window.A


def test_while_a_dialog_is_open_the_review_is_off(window):
    window.ui.registerButton.click()
    waitFor(window)
    before = savedScene()
    for box in (window.ui.checkerboardBox, window.ui.colorBox, window.ui.flickerBox, window.ui.beforeButton):
        box.click()
        assert Dialog(savedScene).open() == before
        waitFor(window, lambda: savedScene() != before or box is window.ui.flickerBox, seconds=10)  # it is on again
        box.click()
        assert savedScene() == before


def test_a_run_that_ends_behind_a_dialog_shows_its_result(window):
    window.ui.registerButton.click()
    untilStep(window, 2)
    Dialog(lambda: waitFor(window)).open()
    idle()
    assert window.A.GetParentTransformNode() is window.p.outputTransform
    assert shown("Red") is window.A
    window.ui.undoButton.click()
    assert window.A.GetParentTransformNode() is window.own


# A batch


@pytest.mark.parametrize("keep", [False, True])
def test_a_scene_saved_in_mid_batch_holds_no_volume_that_goes_again(window, tmp_path, keep):
    for name in ("first", "second"):
        slicer.util.saveNode(window.S, str(tmp_path / f"{name}.nrrd"))
    window.p.batchKeepVolumes = keep
    window.ui.batchFolderPath.currentPath = str(tmp_path)
    window.ui.batchAddFolderButton.click()
    idle()
    before = withoutViews(savedScene())
    window.ui.batchRunButton.click()
    waitFor(window, lambda: window.batchTab.items[0].progress)
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 4  # it is in the scene, but not in its file
    assert withoutViews(savedScene()) == before
    waitFor(window)
    assert [item.status for item in window.batchTab.items] == ["done", "done"]
    names = [name for name in ("first", "second") if any(f'name="{name}"' in line for line in savedScene())]
    assert names == (["first", "second"] if keep else [])
    kept = [node for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if node.GetName() in names]
    assert all(node.GetStorageNode().GetSaveWithScene() and node.GetDisplayNode().GetSaveWithScene() for node in kept)
    window.ui.batchFolderPath.currentPath = ""


# What else is done to the nodes in mid-run


@pytest.mark.parametrize("which", ["moving", "fixed", "hardened"])
def test_a_volume_moved_in_mid_run_stops_the_run_with_a_sentence(window, which):
    window.ui.registerButton.click()
    untilStep(window)
    name = {"moving": "A", "fixed": "F", "hardened": "A"}[which]
    if which == "moving":
        slicer.util.updateTransformMatrixFromArray(window.own, shift(4, 0, 0))
    elif which == "fixed":
        window.F.SetAndObserveTransformNodeID(window.own.GetID())
    else:
        window.A.HardenTransform()
        assert window.A.GetParentTransformNode() is None
    before = withoutViews(savedScene())
    waitFor(window)
    if which == "hardened":  # it is seen where it was, so what is found holds
        output = slicer.util.arrayFromTransformMatrix(window.p.outputTransform)
        np.testing.assert_allclose(output, shift(10, 20, 30), atol=1e-9)
        return
    assert f"“{name}” was moved or changed" in window.ui.messageLabel.text
    assert withoutViews(savedScene()) == before
    assert [node.GetName() for node in ownTransforms()] == ["Own"]


def test_an_output_that_moves_the_fixed_volume_by_the_end_is_not_written(window):
    window.p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Output")
    window.ui.registerButton.click()
    untilStep(window)
    window.F.SetAndObserveTransformNodeID(window.p.outputTransform.GetID())  # the identity: it stays where it is
    waitFor(window)
    assert "also moves the fixed volume" in window.ui.messageLabel.text
    np.testing.assert_array_equal(slicer.util.arrayFromTransformMatrix(window.p.outputTransform), np.eye(4))
    assert window.A.GetParentTransformNode() is window.own


def test_a_preview_that_fails_half_way_leaves_nothing(window, monkeypatch):
    from SpatialDiffusionRegistrationLib import preview

    def full(*_arguments):
        raise MemoryError

    monkeypatch.setattr(preview, "ownTransform", full)
    before, count = savedScene(), slicer.mrmlScene.GetNumberOfNodes()
    window.ui.registerButton.click()
    waitFor(window)
    assert "ran out of memory" in window.ui.messageLabel.text
    assert savedScene() == before and slicer.mrmlScene.GetNumberOfNodes() == count
