"""Press the buttons: real volumes, the real model, real MRML, a real window."""

from __future__ import annotations

import numpy as np
import pytest
import vtk

from SlicerHarness.fixtures import (
    brainMask,
    duplicate,
    idle,
    qt,
    quick,
    register,
    sameAsSeen,
    sceneState,
    segmentationOf,
    slicer,
    turn,
    turnHeader,
    waitFor,
)


@pytest.fixture
def turned(panel, twins):
    """The panel with a brain turned in its header as moving, and the same unturned as fixed; quick settings."""
    panel._parameterNode.movingVolume, panel._parameterNode.fixedVolume = twins.moving, twins.fixed
    panel.pair = twins
    quick(panel)
    return panel


@pytest.fixture
def turnedInFull(turned):
    """The same with the default settings."""
    from SpatialDiffusionRegistrationLib.parameters import Polish

    turned._parameterNode.steps, turned._parameterNode.polish = 0, Polish.AUTOMATIC
    return turned


def press(panel):
    assert panel.ui.registerButton.enabled, panel.ui.registerButton.toolTip
    panel.ui.registerButton.click()


def untilStep(panel, index):
    """Let the run come to a step."""
    waitFor(panel, lambda: panel.ui.progressBar.maximum > 0 and panel.ui.progressBar.value >= index)
    assert panel.registerTab.running


def transforms():
    """Transform nodes that people see (slice views have hidden ones)."""
    return [t for t in slicer.util.getNodesByClass("vtkMRMLTransformNode") if not t.GetHideFromEditors()]


def diceOn(fixedNode, segmentationNode):
    """Dice of a segmentation, where it is seen, with the fixed brain."""
    from SpatialDiffusionRegistrationLib.masks import coreMask

    seen, brain = coreMask(segmentationNode, fixedNode).data > 0, brainMask(fixedNode)
    return 2 * (seen & brain).sum() / (seen.sum() + brain.sum())


def test_a_brain_lands_on_the_template_with_its_segmentation(panel, pair):
    turnHeader(pair.moving, turn(50, (30, -20, 15)))
    p = panel._parameterNode
    p.movingVolume, p.fixedVolume = pair.moving, pair.fixed
    segmentation = segmentationOf(pair.moving)
    idle()
    panel.ui.alsoMoveList.item(0).setCheckState(qt.Qt.Checked)
    before = diceOn(pair.fixed, segmentation)
    register(panel)
    transform = p.outputTransform
    assert pair.moving.GetParentTransformNode() is transform and segmentation.GetParentTransformNode() is transform
    after = diceOn(pair.fixed, segmentation)
    assert before < 0.75 and after > 0.9
    assert transform.GetNodeReference("spatialRegistrationMoving") is pair.moving
    assert transform.GetNodeReference("spatialRegistrationFixed") is pair.fixed
    assert "→" in panel.ui.similarityValue.text and panel.ui.transformValue.text != "–"
    assert "left and right agree" in panel.ui.confidenceValue.text
    assert panel.ui.kindsValue.text == "T1 brain MRI (recognized)"  # nobody chose a modality
    assert panel.ui.registerButton.text == "Register"


def test_a_turned_brain_comes_back_to_within_a_millimeter(turnedInFull):
    register(turnedInFull)
    assert sameAsSeen(turnedInFull.pair.moving, turnedInFull.pair.fixed) < 1.0


def test_rigid_stays_rigid(turned):
    from SpatialDiffusionRegistrationLib.parameters import TransformType

    turned._parameterNode.transformType = TransformType.RIGID
    register(turned)
    rotation = slicer.util.arrayFromTransformMatrix(turned._parameterNode.outputTransform)[:3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-10)
    assert sameAsSeen(turned.pair.moving, turned.pair.fixed) < 1.5


def test_the_moving_volume_moves_while_it_runs(turnedInFull):
    moving = turnedInFull.pair.moving
    positions = []
    press(turnedInFull)
    assert turnedInFull.ui.registerButton.text == "Cancel" and turnedInFull.ui.registerButton.enabled
    assert not turnedInFull.ui.inputsSection.enabled
    original = turnedInFull.registerTab.onStep
    turnedInFull.registerTab.runner._onStep = lambda step: (
        positions.append(slicer.util.arrayFromTransformMatrix(shownMoving().GetParentTransformNode())),
        original(step),
    )
    waitFor(turnedInFull)
    assert moving.GetParentTransformNode() is turnedInFull._parameterNode.outputTransform
    corner = np.array([80, 80, 80, 1.0])
    jumps = [np.linalg.norm((b - a)[:3] @ corner) for a, b in zip([np.eye(4), *positions], positions)]
    assert sum(jump > 0.5 for jump in jumps) >= 5
    assert max(jumps) < 25  # it glides over the 25 degrees and 20 mm, it does not jump
    assert turnedInFull.ui.inputsSection.enabled and turnedInFull.ui.progressFrame.isHidden()


def shownMoving():
    """What the red view shows over the fixed volume."""
    return slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetForegroundLayer().GetVolumeNode()


def test_without_preview_nothing_moves_until_the_end(turned):
    turned._parameterNode.livePreview = False
    before = sceneState()
    press(turned)
    untilStep(turned, 2)
    assert sceneState() == before
    waitFor(turned)
    assert turned.pair.moving.GetParentTransformNode() is turned._parameterNode.outputTransform
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert composite.GetBackgroundVolumeID() == turned.pair.fixed.GetID()
        assert composite.GetForegroundVolumeID() == turned.pair.moving.GetID()


# Cancelling and leaving


@pytest.mark.parametrize("preview", [True, False])
def test_cancel_at_step_3_restores_the_scene_exactly(turnedInFull, preview):
    p = turnedInFull._parameterNode
    p.livePreview = preview
    segmentation = segmentationOf(turnedInFull.pair.moving)
    from SpatialDiffusionRegistrationLib import parameters

    parameters.setNodeList(p, parameters.ALSO_MOVE_ROLE, [segmentation])
    before = sceneState()
    press(turnedInFull)
    untilStep(turnedInFull, 3)
    turnedInFull.ui.registerButton.click()
    assert not turnedInFull.registerTab.running
    assert sceneState() == before
    assert "as it was" in turnedInFull.ui.messageLabel.text
    assert turnedInFull.ui.registerButton.text == "Register" and turnedInFull.ui.registerButton.enabled


def test_cancel_restores_a_chosen_transform(turned):
    p = turned._parameterNode
    chosen = p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Mine")
    slicer.util.updateTransformMatrixFromArray(chosen, turn(5))
    chosen.SetNodeReferenceID("spatialRegistrationMoving", turned.pair.fixed.GetID())
    before = sceneState()
    press(turned)
    untilStep(turned, 2)
    turned.ui.registerButton.click()
    assert sceneState() == before


def test_closing_the_scene_in_mid_run(turned):
    press(turned)
    untilStep(turned, 2)
    slicer.mrmlScene.Clear()
    assert not turned.registerTab.running
    assert turned._parameterNode is not None and turned._parameterNode.movingVolume is None
    assert not turned.ui.registerButton.enabled


@pytest.mark.parametrize("which", ["moving", "fixed", "transform"])
def test_removing_a_node_in_mid_run(turned, which):
    p = turned._parameterNode
    p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Chosen")
    node = {"moving": turned.pair.moving, "fixed": turned.pair.fixed, "transform": p.outputTransform}[which]
    press(turned)
    untilStep(turned, 2)
    name = node.GetName()
    slicer.mrmlScene.RemoveNode(node)
    assert not turned.registerTab.running
    assert name in turned.ui.messageLabel.text
    assert [each.GetName() for each in transforms()] == ([] if which == "transform" else ["Chosen"])
    if which != "moving":
        assert turned.pair.moving.GetParentTransformNode() is None


def test_leaving_the_module_in_mid_run(turned, loaded):
    press(turned)
    untilStep(turned, 2)
    loaded.exit()
    waitFor(turned)
    loaded.enter()
    assert turned._parameterNode.outputTransform is not None
    assert turned.ui.outputTransformSelector.currentNode() is turned._parameterNode.outputTransform
    assert sameAsSeen(turned.pair.moving, turned.pair.fixed) < 1.5


def test_importing_a_scene_in_mid_run_stops_it(turned, tmp_path):
    before = turned.pair.moving.GetTransformNodeID()
    other = slicer.vtkMRMLScene()
    other.SetURL(str(tmp_path / "empty.mrml"))
    assert other.Commit()
    press(turned)
    untilStep(turned, 2)
    slicer.mrmlScene.SetURL(str(tmp_path / "empty.mrml"))
    slicer.mrmlScene.Import()
    assert not turned.registerTab.running
    assert turned.pair.moving.GetTransformNodeID() == before


def test_reloading_the_module_in_mid_run(turned, loaded):
    moving, fixed = turned.pair.moving, turned.pair.fixed
    before = sceneState()
    press(turned)
    untilStep(turned, 2)
    turned.onReload()
    assert sceneState() == before and not turned.registerTab.running
    fresh = loaded.widget
    assert fresh is not turned
    assert fresh._parameterNode.movingVolume is moving and fresh._parameterNode.fixedVolume is fixed
    register(fresh)
    assert sameAsSeen(moving, fixed) < 1.5


# Outputs


def test_a_chosen_transform_is_filled_not_replaced(turned):
    p = turned._parameterNode
    chosen = p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Mine")
    identity = chosen.GetID()
    register(turned)
    assert p.outputTransform is chosen and chosen.GetID() == identity and chosen.GetName() == "Mine"
    assert turned.pair.moving.GetParentTransformNode() is chosen


def test_only_a_resampled_volume(turned):
    p = turned._parameterNode
    p.outputVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Resampled")
    transforms = len(slicer.util.getNodesByClass("vtkMRMLTransformNode"))
    register(turned)
    assert p.outputTransform is None and turned.pair.moving.GetParentTransformNode() is None
    assert len(slicer.util.getNodesByClass("vtkMRMLTransformNode")) == transforms
    checkResampled(turned)
    assert "→" in turned.ui.similarityValue.text


def checkResampled(panel):
    output, fixed = panel._parameterNode.outputVolume, panel.pair.fixed
    assert sameAsSeen(output, fixed) < 1e-6
    moved, still = (slicer.util.arrayFromVolume(node).astype(float).ravel() for node in (output, fixed))
    assert np.corrcoef(moved, still)[0, 1] > 0.97


def test_both_outputs(turned):
    p = turned._parameterNode
    p.outputVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Resampled")
    p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Mine")
    register(turned)
    checkResampled(turned)
    assert sameAsSeen(turned.pair.moving, turned.pair.fixed) < 1.5


# Transforms that are there already


def underTransform(node, matrix, name, kind="vtkMRMLLinearTransformNode"):
    transform = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    slicer.util.updateTransformMatrixFromArray(transform, matrix)
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def test_volumes_under_transforms_are_registered_where_they_are_seen(turned):
    """Both under parents (the moving one under two), and the chosen output under a parent of its own."""
    p, moving, fixed = turned._parameterNode, turned.pair.moving, turned.pair.fixed
    movingParent = underTransform(moving, turn(15, (5, 5, 5)), "Moving parent")
    movingGrandparent = underTransform(movingParent, turn(-10, (0, 9, 0)), "Moving grandparent")
    fixedParent = underTransform(fixed, turn(20, (-7, 3, 9)), "Fixed parent")
    kept = [slicer.util.arrayFromTransformMatrix(t).copy() for t in (movingParent, movingGrandparent, fixedParent)]
    p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Output")
    underTransform(p.outputTransform, turn(30, (1, 2, 3)), "Output parent")
    p.outputVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Resampled")
    register(turned)
    assert sameAsSeen(moving, fixed) < 1.5
    assert moving.GetParentTransformNode() is p.outputTransform
    assert fixed.GetParentTransformNode() is fixedParent
    assert movingParent.GetParentTransformNode() is movingGrandparent
    for matrix, transform in zip(kept, (movingParent, movingGrandparent, fixedParent)):
        np.testing.assert_array_equal(slicer.util.arrayFromTransformMatrix(transform), matrix)
    checkResampled(turned)


def test_companions_under_other_transforms_keep_their_place_beside_the_moving_volume(turned):
    from SpatialDiffusionRegistrationLib import parameters
    from SpatialDiffusionRegistrationLib import scene as sceneLib

    p, moving, fixed = turned._parameterNode, turned.pair.moving, turned.pair.fixed
    beside, apart = duplicate(moving, "Beside"), duplicate(moving, "Apart")
    underTransform(moving, turn(15), "Parent")
    parent = underTransform(apart, turn(15), "Another parent with the same effect")
    underTransform(apart, np.eye(4), "Not there yet")
    slicer.util.updateTransformMatrixFromArray(parent, turn(-40))  # has nothing below it any more
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Points")
    points.AddControlPointWorld(10, 20, 30)
    parameters.setNodeList(p, parameters.ALSO_MOVE_ROLE, [beside, apart, points])
    before = [sceneLib.voxelToWorld(node) for node in (moving, beside, apart)]
    register(turned)
    after = [sceneLib.voxelToWorld(node) for node in (moving, beside, apart)]
    matrix = after[0] @ np.linalg.inv(before[0])  # moving to fixed, as seen
    for old, new in zip(before, after):
        np.testing.assert_allclose(new, matrix @ old, atol=1e-9)
    position = [0.0, 0.0, 0.0]
    points.GetNthControlPointPositionWorld(0, position)
    np.testing.assert_allclose([*position, 1], matrix @ [10, 20, 30, 1], atol=1e-6)
    # Again: everything follows on, and no more transforms are made.
    count, output = len(slicer.util.getNodesByClass("vtkMRMLTransformNode")), p.outputTransform
    register(turned)
    assert p.outputTransform is output
    assert len(slicer.util.getNodesByClass("vtkMRMLTransformNode")) == count
    again = [sceneLib.voxelToWorld(node) for node in (moving, beside, apart)]
    matrix = again[0] @ np.linalg.inv(before[0])
    for old, new in zip(before, again):
        np.testing.assert_allclose(new, matrix @ old, atol=1e-6)
    assert sameAsSeen(moving, fixed) < 1.5


def test_an_initial_transform_is_used(turnedInFull):
    turned, p = turnedInFull, turnedInFull._parameterNode
    p.initialTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Initial")
    slicer.util.updateTransformMatrixFromArray(p.initialTransform, np.linalg.inv(turn()))
    p.livePreview = True
    press(turned)
    waitFor(turned, lambda: turned.ui.progressBar.maximum > 0 and turned.ui.progressBar.value >= 1)
    waitFor(
        turned,
        lambda: (
            not turned.registerTab.running
            or turned.registerTab.task._preview is not None
            and np.allclose(turned.registerTab.task._preview.matrix, np.linalg.inv(turn()), atol=1e-6)
        ),
    )
    assert turned.registerTab.running
    assert sameAsSeen(shownMoving(), turned.pair.fixed) < 1e-3  # the first step shows where it starts
    waitFor(turned)
    assert sameAsSeen(turned.pair.moving, turned.pair.fixed) < 1.0


def test_masks_of_both_kinds(turned):
    p = turned._parameterNode
    p.movingMask = segmentationOf(turned.pair.moving, "Moving mask")
    labels = duplicate(turned.pair.fixed, "labels")
    p.fixedMask = slicer.util.addVolumeFromArray(
        (slicer.util.arrayFromVolume(labels) > 0).astype("uint8"),
        nodeClassName="vtkMRMLLabelMapVolumeNode",
        ijkToRAS=_ijkToRas(labels),
    )
    register(turned)
    assert sameAsSeen(turned.pair.moving, turned.pair.fixed) < 1.5


def _ijkToRas(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


# Review


def test_fade_flicker_and_before(turned):
    register(turned)
    ui, moving = turned.ui, turned.pair.moving
    composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
    ui.fadeSlider.setValue(80)
    assert composite.GetForegroundOpacity() == pytest.approx(0.8)
    ui.flickerBox.setChecked(True)
    shown = composite.GetForegroundOpacity()
    assert shown in (0.0, 1.0)
    turned.registerTab.review._flick()
    assert composite.GetForegroundOpacity() == 1.0 - shown
    ui.flickerBox.setChecked(False)
    assert composite.GetForegroundOpacity() == pytest.approx(0.8)

    before = sceneState()
    assert ui.beforeButton.enabled
    ui.beforeButton.click()
    shown = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID())
    assert sameAsSeen(shown, turned.pair.fixed) > 10 and sameAsSeen(moving, turned.pair.fixed) < 1.5
    assert ui.beforeButton.text == "Show after"
    ui.beforeButton.click()
    assert sceneState() == before


def test_checkerboard_and_leaving_it(turned, loaded, tmp_path):
    register(turned)
    before = sceneState()[0]
    turned.ui.checkerboardBox.setChecked(True)
    composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
    board = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID())
    assert board.GetName() == "Checkerboard" and not board.GetSaveWithScene()
    values, fixed = slicer.util.arrayFromVolume(board), slicer.util.arrayFromVolume(turned.pair.fixed)
    assert values.shape == fixed.shape and values.std() > 10
    turned.ui.beforeButton.click()
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Commit()
    saved = (tmp_path / "scene.mrml").read_text()
    assert "before registration" not in saved.lower() and 'name="Checkerboard"' not in saved
    loaded.exit()
    assert sceneState()[0] == before
    assert composite.GetBackgroundVolumeID() == turned.pair.fixed.GetID()
    loaded.enter()


def test_a_saved_scene_still_knows_its_result(turned, tmp_path):
    register(turned)
    shown = [label.text for label in (turned.ui.similarityValue, turned.ui.transformValue, turned.ui.confidenceValue)]
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    for node in (turned.pair.moving, turned.pair.fixed, turned._parameterNode.outputTransform):
        ending = ".h5" if node.IsA("vtkMRMLTransformNode") else ".nrrd"
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(tmp_path / (node.GetName().replace(" ", "_") + ending)))
        assert node.GetStorageNode().WriteData(node)
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear()
    assert turned.ui.similarityValue.text == "–"
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Import()
    p = turned._parameterNode
    assert p.movingVolume.GetName() == "Brain" and p.outputTransform is not None
    assert [
        label.text for label in (turned.ui.similarityValue, turned.ui.transformValue, turned.ui.confidenceValue)
    ] == shown
    assert sameAsSeen(p.movingVolume, p.fixedVolume) < 1.5
    turned.ui.beforeButton.click()
    composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
    assert sameAsSeen(slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID()), p.fixedVolume) > 10
