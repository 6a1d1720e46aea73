"""What goes wrong in mid-run or behind the module's back: the scene is whole, and the panel says so in true words."""

from __future__ import annotations

import csv
import os
import sys

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    BRAIN,
    add,
    addTransform,
    idle,
    register,
    savedScene,
    scripted,
    segmentationOf,
    slicer,
    smallVolume,
    untilStep,
    waitFor,
)


@pytest.fixture
def window(panel, monkeypatch):
    """The panel with two small volumes and scripted steps."""
    panel.calls = scripted(monkeypatch, panel)
    panel.moving, panel.fixed = smallVolume("A", 1), smallVolume("F", 3)
    panel.p = panel._parameterNode
    panel.p.movingVolume, panel.p.fixedVolume = panel.moving, panel.fixed
    idle()
    return panel


# The voxels are others than those that were read


def paint(node):
    slicer.util.arrayFromVolume(node)[:5] = 0
    slicer.util.arrayFromVolumeModified(node)


def crop(node):
    slicer.util.updateVolumeFromArray(node, slicer.util.arrayFromVolume(node)[:10].copy())


def empty(node):
    node.SetAndObserveImageData(None)


@pytest.mark.parametrize("change", [paint, crop, empty])
@pytest.mark.parametrize("which", ["moving", "fixed"])
def test_voxels_that_change_in_mid_run_end_it_with_a_sentence(window, which, change):
    node = getattr(window, which)
    window.ui.registerButton.click()
    untilStep(window)
    change(node)
    waitFor(window)
    assert f"“{node.GetName()}” was moved or changed while it was registered" in window.ui.messageLabel.text
    assert not window.ui.messageFrame.isHidden() and window.moving.GetParentTransformNode() is None


def test_a_browser_that_plays_in_mid_run_ends_the_run_of_the_frame(window):
    """Else the result would be called that of the frame that is shown by then."""
    sequence = add("vtkMRMLSequenceNode", "Series")
    for index in range(3):
        frame = slicer.vtkMRMLScalarVolumeNode()
        slicer.util.updateVolumeFromArray(frame, np.random.default_rng(index).random((12, 12, 12)).astype(np.float32))
        sequence.SetDataNodeAtValue(frame, str(index))
    browser = add("vtkMRMLSequenceBrowserNode", "Browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    window.p.movingVolume = browser.GetProxyNode(sequence)
    window.ui.registerButton.click()
    untilStep(window)
    browser.SetSelectedItemNumber(2)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    waitFor(window)
    assert "was moved or changed while it was registered" in window.ui.messageLabel.text
    register(window)  # and again, while it stands still
    assert "the frame shown now was registered" in window.ui.warningsValue.text


def test_what_does_not_change_voxels_does_not_end_a_run(window):
    window.ui.registerButton.click()
    untilStep(window)
    window.moving.GetDisplayNode().SetWindowLevel(0.1, 0.5)
    window.moving.SetName("Ä “B” 頭")
    window.moving.GetImageData().GetScalarRange()
    waitFor(window)
    assert window.ui.messageFrame.isHidden() and "Ä “B” 頭" in window.ui.pairValue.text
    assert window.moving.GetParentTransformNode() is window.p.outputTransform


# Nodes that leave the scene


def test_a_volume_that_leaves_the_scene_in_a_script_ends_its_registration(window):
    def remove(step):
        if step.index == 3:
            slicer.mrmlScene.RemoveNode(window.moving)

    count = len(slicer.util.getNodesByClass("vtkMRMLTransformNode"))
    with pytest.raises(ValueError, match="“A” was removed from the scene"):
        window.logic.register(window.moving, window.fixed, progress=remove)
    assert len(slicer.util.getNodesByClass("vtkMRMLTransformNode")) == count


def test_a_volume_that_leaves_the_scene_in_a_batch_fails_alone(window):
    window.p.movingVolume = None
    smallVolume("B", 2)
    window.ui.batchAddSceneButton.click()
    window.ui.batchRunButton.click()
    waitFor(window, lambda: any(item.progress for item in window.batchTab.items))
    (first,) = [item for item in window.batchTab.items if item.node is window.moving]
    slicer.mrmlScene.RemoveNode(window.moving)
    waitFor(window)
    assert first.status == "failed" and "removed from the scene" in first.error and first.transformNode is None
    assert [item.status for item in window.batchTab.items] == ["done"]
    assert "1 registered, 1 failed" in window.ui.batchMessageLabel.text
    assert "A: “A” was removed" in window.ui.batchMessageLabel.text


def test_a_node_that_is_not_in_the_scene_is_refused(window):
    loose = slicer.vtkMRMLScalarVolumeNode()
    loose.SetName("Loose")
    slicer.util.updateVolumeFromArray(loose, np.random.default_rng(0).random((9, 9, 9)))
    with pytest.raises(ValueError, match="“Loose” is not in the scene"):
        window.logic.register(loose, window.fixed)
    with pytest.raises(ValueError, match="“Loose” is not in the scene"):
        window.logic.register(window.moving, window.fixed, alsoMove=[loose])


@pytest.mark.parametrize("running", [False, True])
def test_the_modules_own_node_may_be_deleted(window, running):
    if running:
        window.ui.registerButton.click()
        untilStep(window)
    slicer.mrmlScene.RemoveNode(window.p.parameterNode)
    idle()
    assert not window.registerTab.running and window.moving.GetParentTransformNode() is None
    p = window._parameterNode
    assert p is not None and p.parameterNode.GetScene() is slicer.mrmlScene and p.movingVolume is None
    p.movingVolume, p.fixedVolume = window.moving, window.fixed
    register(window)
    assert window.moving.GetParentTransformNode() is p.outputTransform


def test_a_batch_row_whose_transform_was_deleted_can_be_registered_again(window):
    window.p.movingVolume = None
    window.ui.batchAddSceneButton.click()
    window.ui.batchRunButton.click()
    waitFor(window)
    button, (item,) = window.ui.batchRunButton, window.batchTab.items
    assert not button.enabled and "All are done: to register volumes again, take their rows out" in button.toolTip
    slicer.mrmlScene.RemoveNode(item.transformNode)
    idle()
    assert button.enabled
    button.click()
    waitFor(window)
    assert window.moving.GetParentTransformNode() is window.batchTab.items[0].transformNode is not None


# What moves along


@pytest.mark.parametrize("role", ["fixedVolume", "fixedMask"])
def test_what_has_become_the_fixed_volumes_does_not_move_along(window, role):
    """It is not in the list any more, so nobody could uncheck it."""
    from SpatialDiffusionRegistrationLib import parameters

    node = smallVolume("G", 5) if role == "fixedVolume" else segmentationOf(window.fixed)
    parameters.setNodeList(window.p, parameters.ALSO_MOVE_ROLE, [node])
    idle()
    setattr(window.p, role, node)
    idle()
    register(window)
    assert node.GetParentTransformNode() is None and window.moving.GetParentTransformNode() is not None


def test_scripts_are_told_what_belongs_to_the_fixed_volume(window):
    mask = segmentationOf(window.fixed)
    with pytest.raises(ValueError, match="belongs to the fixed volume and can not move along"):
        window.logic.register(window.moving, window.fixed, fixedMask=mask, alsoMove=[mask])


def chooseSegment(window):
    """A segmentation as the moving mask, and its one segment."""
    node = segmentationOf(window.moving)
    window.p.movingMask = node
    window.p.movingSegment = node.GetSegmentation().GetNthSegmentID(0)
    idle()
    return node


@pytest.mark.parametrize("how", ["deleted", "other"])
def test_a_segment_is_not_looked_for_in_another_mask(window, how):
    node = chooseSegment(window)
    if how == "deleted":
        slicer.mrmlScene.RemoveNode(node)
        idle()
    window.p.movingMask = segmentationOf(window.moving, "Other")
    idle()
    assert window.p.movingSegment == "" and window.ui.registerButton.enabled
    assert window.ui.movingSegmentCombo.currentText == "All segments"


def test_masks_keep_their_segments_when_the_volumes_are_exchanged(window):
    node = chooseSegment(window)
    key = window.p.movingSegment
    window.ui.swapButton.click()
    idle()
    assert (window.p.fixedMask, window.p.fixedSegment, window.p.movingSegment) == (node, key, "")


def test_a_segment_that_is_gone_is_shown_as_such_and_all_can_be_chosen(window):
    node = chooseSegment(window)
    node.GetSegmentation().AddEmptySegment("more")
    node.GetSegmentation().RemoveSegment(window.p.movingSegment)
    window.p.parameterNode.Modified()
    idle()
    combo = window.ui.movingSegmentCombo
    assert "not there any more" in window.ui.registerButton.toolTip and "not there any more" in combo.currentText
    combo.setCurrentIndex(0)
    idle()
    assert window.ui.registerButton.enabled and window.p.movingSegment == "" and combo.findText(combo.currentText) == 0


def test_landmarks_that_change_in_mid_run_are_told(window):
    for role in ("moving", "fixed"):
        points = add("vtkMRMLMarkupsFiducialNode", f"{role} points")
        points.AddControlPoint([1.0, 2.0, 3.0], "a")
        setattr(window.p, f"{role}Landmarks", points)
    window.ui.registerButton.click()
    untilStep(window)
    window.p.fixedLandmarks.RemoveAllControlPoints()
    waitFor(window)
    assert "landmarks were changed" in window.ui.warningsValue.text and window.ui.landmarksValue.isHidden()


# Errors reach the panel


@pytest.mark.parametrize("tab", ["register", "batch"])
def test_an_exception_after_the_last_step_reaches_the_panel(window, monkeypatch, tab):
    def fail(*_arguments):
        raise RuntimeError("no room")

    if tab == "register":
        monkeypatch.setattr(window.ui.resultSection.__class__, "collapsed", property(fail, fail))
        window.ui.registerButton.click()
        waitFor(window)
        monkeypatch.undo()
        assert "no room" in window.ui.messageLabel.text and not window.ui.messageFrame.isHidden()
        assert window.moving.GetParentTransformNode() is None
        return
    monkeypatch.setattr(window.batchTab, "_writtenAll", fail)
    window.p.movingVolume = None
    window.ui.batchAddSceneButton.click()
    window.p.batchOutputFolder = slicer.app.temporaryPath
    window.ui.batchRunButton.click()
    waitFor(window)
    assert "no room" in window.ui.batchMessageLabel.text
    assert "nothing in the scene was changed" not in window.ui.batchMessageLabel.text
    assert window.moving.GetParentTransformNode() is not None
    assert window.ui.batchProgressBar.isHidden() and window.ui.registerButton.text != "Another registration is running"
    window.p.batchOutputFolder = ""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_a_name_that_is_no_unicode_is_refused_and_is_in_the_report(window, tmp_path):
    """VTK ends the whole application where it is given one."""
    odd = os.fsdecode(b"k\xf6pf")
    scans, out = tmp_path / "scans", tmp_path / "out"
    for folder in (scans, out, tmp_path / odd):
        folder.mkdir()
    (scans / f"{odd}.nii.gz").write_bytes(BRAIN.read_bytes())
    window.p.movingVolume = None
    window.ui.batchFolderPath.currentPath = str(scans)
    window.ui.batchAddFolderButton.click()
    window.ui.batchOutputPath.currentPath = str(out)
    window.ui.batchRunButton.click()
    waitFor(window)
    assert "pf.nii.gz” has characters that are no Unicode: rename it" in window.ui.batchMessageLabel.text
    assert "registrations.csv" in window.ui.batchMessageLabel.text
    with (out / "registrations.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    with pytest.raises(ValueError, match="no Unicode"):
        window.logic.registerMany([window.moving], window.fixed, outputFolder=str(tmp_path / odd))
    window.ui.batchFolderPath.currentPath = window.ui.batchOutputPath.currentPath = ""


# A disabled button says why


def test_each_disabled_button_says_why_on_itself(window):
    ui = window.ui
    said = {
        "sequencePlotButton": "Register the frames",
        "sequencePageButton": "Register the frames",
        "batchReportButton": "Register the volumes first",
        "batchPageButton": "output folder",
        "batchLookButton": "Select a row",
        "beforeButton": "Register these volumes first",
    }
    for name, why in said.items():
        button = getattr(ui, name)
        assert not button.enabled and why in button.toolTip, name
    register(window)
    assert ui.beforeButton.enabled and "Show the moving volume where it was" in ui.beforeButton.toolTip


# The same node twice, one name twice, two windows


def test_two_volumes_of_one_name_are_told_apart(window):
    other = smallVolume("A", 7)
    other.SetName("A")
    before = savedScene()
    register(window)
    assert other.GetParentTransformNode() is None and window.moving.GetParentTransformNode() is not None
    window.ui.undoButton.click()
    assert savedScene() == before
    window.p.movingVolume = window.fixed
    assert "the same" in window.ui.registerButton.toolTip and not window.ui.registerButton.enabled


def test_transforms_above_both_volumes_stay(window):
    outer, inner = addTransform("Outer", (5, 0, 0)), addTransform("Inner", (0, 7, 0))
    inner.SetAndObserveTransformNodeID(outer.GetID())
    window.moving.SetAndObserveTransformNodeID(inner.GetID())
    window.fixed.SetAndObserveTransformNodeID(outer.GetID())
    idle()
    register(window)
    from SpatialDiffusionRegistrationLib.scene import voxelToWorld

    np.testing.assert_allclose(voxelToWorld(window.moving)[:3, 3], [15, 27, 30], atol=1e-6)
    np.testing.assert_allclose(slicer.util.arrayFromTransformMatrix(inner)[:3, 3], [0, 7, 0])
    np.testing.assert_allclose(voxelToWorld(window.fixed)[:3, 3], [5, 0, 0])
