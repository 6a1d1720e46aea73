"""Undo, swap, parts of a volume as masks, landmarks, interpolation, probability: with right values."""

from __future__ import annotations

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    add,
    idle,
    qt,
    register,
    savedScene,
    scripted,
    slicer,
    smallVolume,
)


@pytest.fixture
def window(panel, monkeypatch):
    panel.calls = scripted(monkeypatch, panel)
    panel.A, panel.F = smallVolume("A", 1), smallVolume("F", 2)
    panel.p = panel._parameterNode
    panel.p.movingVolume, panel.p.fixedVolume = panel.A, panel.F
    idle()
    return panel


# Undo


@pytest.mark.parametrize("outputs", ["new", "chosen", "volume only", "both"])
def test_undo_puts_back_everything(window, outputs):
    model = add("vtkMRMLModelNode", "Follows")
    own = add("vtkMRMLLinearTransformNode", "Own")
    slicer.util.updateTransformMatrixFromArray(own, np.diag([1.0, -1.0, -1.0, 1.0]))
    model.SetAndObserveTransformNodeID(own.GetID())
    idle()
    window.ui.alsoMoveList.item(0).setCheckState(qt.Qt.Checked)
    if outputs in ("chosen", "both"):
        window.p.outputTransform = add("vtkMRMLLinearTransformNode", "Mine")
    if outputs in ("volume only", "both"):
        window.p.outputVolume = add("vtkMRMLScalarVolumeNode", "Resampled")
    before = savedScene()
    register(window)
    assert savedScene() != before and window.ui.undoButton.enabled and not window.ui.undoButton.isHidden()
    window.ui.undoButton.click()
    assert savedScene() == before
    assert "Undone" in window.ui.messageLabel.text and window.ui.undoButton.isHidden()
    if outputs in ("volume only", "both"):
        assert window.p.outputVolume.GetImageData() is None


def test_undo_of_a_second_run_goes_back_to_the_first(window, monkeypatch):
    register(window)
    first = savedScene()
    target = np.eye(4)
    target[:3, 3] = 1, 1, 1
    scripted(monkeypatch, window, target=target)
    register(window)
    window.ui.undoButton.click()
    assert savedScene() == first
    assert window.ui.similarityValue.text != "–" and window.ui.stateValue.isHidden()


def test_undo_takes_nothing_away_that_came_later(window):
    register(window)
    implant = add("vtkMRMLModelNode", "Implant")
    implant.SetAndObserveTransformNodeID(window.p.outputTransform.GetID())
    window.p.Modified()
    assert not window.ui.undoButton.enabled and "“Implant”" in window.ui.undoButton.toolTip
    implant.SetAndObserveTransformNodeID(None)
    window.p.Modified()
    assert window.ui.undoButton.enabled


@pytest.mark.parametrize("which", ["moving", "transform"])
def test_undo_goes_with_its_nodes(window, which):
    register(window)
    slicer.mrmlScene.RemoveNode({"moving": window.A, "transform": window.p.outputTransform}[which])
    idle()
    assert window.ui.undoButton.isHidden()


# Swap


def test_swap_exchanges_the_volumes_and_what_was_said_about_them(window):
    p = window.p
    labels = smallVolume("of F", className="vtkMRMLLabelMapVolumeNode")
    p.movingModality, p.fixedModality, p.fixedMask = "t1-brain", "any", labels
    window.ui.swapButton.click()
    assert (p.movingVolume, p.fixedVolume) == (window.F, window.A)
    assert (p.movingModality, p.fixedModality, p.movingMask, p.fixedMask) == ("any", "t1-brain", labels, None)
    assert window.ui.movingSelector.currentNode() is window.F
    p.fixedModality = ""  # as the moving volume: the same for both
    window.ui.swapButton.click()
    assert (p.movingModality, p.fixedModality) == ("any", "")


def test_swapping_after_a_registration_registers_the_other_way(window):
    register(window)
    window.ui.swapButton.click()
    register(window)
    assert window.F.GetParentTransformNode() is window.p.outputTransform
    assert window.A.GetParentTransformNode() is not window.p.outputTransform


# Masks


def boxes():
    """A segmentation with two boxes of 5 x 5 x 5 voxels that share a label map."""
    data = np.zeros((20, 22, 24), np.uint8)
    data[2:7, 2:7, 2:7], data[10:15, 10:15, 10:15] = 1, 2  # k, j, i
    labels = slicer.util.addVolumeFromArray(data, nodeClassName="vtkMRMLLabelMapVolumeNode")
    node = add("vtkMRMLSegmentationNode", "Teeth")
    slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, node)
    slicer.mrmlScene.RemoveNode(labels)
    return node


def test_one_segment_of_a_segmentation_is_the_mask(window, monkeypatch):
    from SpatialDiffusionRegistrationLib import masks

    window.calls = scripted(monkeypatch, window, target=np.eye(4))  # the mask and its volume stay together
    window.p.movingMask = boxes()
    combo = window.ui.movingSegmentCombo
    assert combo.count == 3 and combo.currentIndex == 0 and window.ui.fixedSegmentCombo.isHidden()
    register(window)
    assert window.calls[-1].movingMask.data.sum() == 250
    combo.setCurrentIndex(2)
    assert window.p.movingSegment == masks.segments(window.p.movingMask)[1][0]
    register(window)
    inside = np.argwhere(window.calls[-1].movingMask.data)
    assert len(inside) == 125 and inside.min() == 10 and inside.max() == 14


def test_scripts_name_a_segment(window):
    teeth = boxes()
    name = teeth.GetSegmentation().GetNthSegment(1).GetName()
    window.logic.register(window.A, window.F, movingMask=teeth, movingSegment=name)
    assert window.calls[-1].movingMask.data.sum() == 125
    with pytest.raises(ValueError, match="no segment “molar”"):
        window.logic.register(window.A, window.F, fixedMask=teeth, fixedSegment="molar")


def test_a_segment_that_is_gone_is_asked_for(window):
    window.p.fixedMask = boxes()
    window.ui.fixedSegmentCombo.setCurrentIndex(1)
    window.p.fixedMask.GetSegmentation().RemoveSegment(window.p.fixedSegment)
    window.p.Modified()
    assert "not there any more" in window.ui.registerButton.toolTip


def test_masks_are_taken_where_they_are_seen(window):
    """A segmentation under a transform of its own."""
    window.p.movingMask = boxes()
    moved = add("vtkMRMLLinearTransformNode", "Moved")
    matrix = np.eye(4)
    matrix[:3, 3] = 1, 2, 3
    slicer.util.updateTransformMatrixFromArray(moved, matrix)
    window.p.movingMask.SetAndObserveTransformNodeID(moved.GetID())
    register(window)
    inside = np.argwhere(window.calls[-1].movingMask.data)  # i, j, k
    assert len(inside) == 250
    np.testing.assert_array_equal(inside.min(0), (3, 4, 5))


def test_a_roi_is_a_mask_turned_as_it_is_seen(window):
    roi = add("vtkMRMLMarkupsROINode", "Box")
    roi.SetCenter(10.0, 10.0, 10.0)
    roi.SetSize(6.0, 8.0, 10.0)
    window.p.fixedMask = roi
    register(window)
    inside = np.argwhere(window.calls[-1].fixedMask.data)  # voxels of 1 mm from 0 on
    np.testing.assert_array_equal((inside.min(0), inside.max(0)), ((7, 6, 5), (13, 14, 15)))
    quarter = np.array([[0, -1, 0, 20], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])  # about z, through (10, 10)
    turned = add("vtkMRMLLinearTransformNode", "Turned")
    slicer.util.updateTransformMatrixFromArray(turned, quarter)
    roi.SetAndObserveTransformNodeID(turned.GetID())
    register(window)
    inside = np.argwhere(window.calls[-1].fixedMask.data)
    np.testing.assert_array_equal((inside.min(0), inside.max(0)), ((6, 7, 5), (14, 13, 15)))


def test_a_roi_without_size_and_other_nodes_are_refused(window):
    roi = add("vtkMRMLMarkupsROINode", "Box")
    roi.SetSize(0.0, 5.0, 5.0)
    window.p.fixedMask = roi
    assert "no size" in window.ui.registerButton.toolTip
    with pytest.raises(ValueError, match="can not be a mask"):
        window.logic.register(window.A, window.F, fixedMask=add("vtkMRMLModelNode", "model"))


# Landmarks


def points(name, positions, labels=None):
    node = add("vtkMRMLMarkupsFiducialNode", name)
    for index, position in enumerate(positions):
        node.AddControlPointWorld(*map(float, position))
        if labels:
            node.SetNthControlPointLabel(index, labels[index])
    return node


MOVING = [(0, 0, 0), (5, 5, 5)]
FIXED = [(10, 20, 30), (15, 25, 38)]  # the second is 3 mm away from where the shift takes its like


@pytest.mark.parametrize("moves", [False, True])
def test_landmarks_tell_the_error_in_mm(window, moves):
    p = window.p
    p.movingLandmarks, p.fixedLandmarks = points("moving", MOVING), points("fixed", FIXED)
    if moves:
        idle()
        widget = window.ui.alsoMoveList
        row = [widget.item(r).text() for r in range(widget.count)].index("moving")
        widget.item(row).setCheckState(qt.Qt.Checked)
    register(window)
    from SpatialDiffusionRegistrationLib.result import Result

    errors = Result.stored(p.outputTransform).landmarkErrors()
    np.testing.assert_allclose(errors.after, (0, 3), atol=1e-6)
    np.testing.assert_allclose(errors.before, (np.sqrt(1400), np.sqrt(100 + 400 + 33**2)), atol=1e-6)
    assert "→ 1.50 mm (mean of 2; the worst" in window.ui.landmarksValue.text
    assert "3.00 mm" in window.ui.landmarksValue.text and not window.ui.landmarksValue.isHidden()
    register(window)  # by now they have moved along, or not
    again = Result.stored(p.outputTransform).landmarkErrors()
    np.testing.assert_allclose(again.before, errors.after if moves else errors.before, atol=1e-6)


def test_landmarks_go_by_their_names_where_these_agree(window):
    errors = window.logic
    errors.register(
        window.A,
        window.F,
        movingLandmarks=points("moving", MOVING[::-1], ["b", "a"]),
        fixedLandmarks=points("fixed", FIXED, ["a", "b"]),
    )
    np.testing.assert_allclose(errors.result.landmarkErrors().after, (0, 3), atol=1e-6)
    assert errors.result.landmarkErrors().names == ("a", "b")


def test_landmarks_that_do_not_correspond_are_refused(window):
    p = window.p
    p.movingLandmarks = points("moving", MOVING)
    assert "both volumes" in window.ui.registerButton.toolTip
    p.fixedLandmarks = points("fixed", FIXED[:1])
    assert "“moving” has 2 points, “fixed” has 1" in window.ui.registerButton.toolTip
    p.fixedLandmarks = p.movingLandmarks
    assert "same points" in window.ui.registerButton.toolTip
    p.movingLandmarks = p.fixedLandmarks = points("nothing", [])
    assert not window.ui.registerButton.enabled


# Interpolation


def test_nearest_invents_no_values_and_linear_does(window, monkeypatch):
    target = np.eye(4)
    target[:3, 3] = 0.4, 0.3, 0.2
    scripted(monkeypatch, window, target=target)
    data = np.random.default_rng(0).choice([0, 100, 200], (20, 22, 24)).astype(np.int16)
    slicer.util.updateVolumeFromArray(window.A, data)
    values = {}
    for index, name in ((1, "nearest"), (0, "linear")):
        window.ui.interpolationCombo.setCurrentIndex(index)
        output = window.p.outputVolume = add("vtkMRMLScalarVolumeNode", name)
        register(window)
        values[name] = slicer.util.arrayFromVolume(output)
        assert values[name].dtype == np.int16
    np.testing.assert_array_equal(values["nearest"], data)
    assert len(np.unique(values["linear"])) > 50
    with pytest.raises(ValueError, match="sharp"):
        window.logic.register(window.A, window.F, interpolation="sharp")


# How sure


@pytest.mark.parametrize(
    "probability, words",
    [
        (0.95, "about 1 in 20 such answers is wrong"),
        (0.99, "about 1 in 100 such answers is wrong"),
        (0.4, "60 of 100 such answers are wrong"),
        (0.99999, "fewer than 1 in 100 "),
    ],
)
def test_the_probability_is_told(window, monkeypatch, probability, words):
    scripted(monkeypatch, window, probability=probability)
    register(window)
    text = window.ui.confidenceValue.text
    assert text.startswith("Good") and words in text
    assert "repeated runs agree within 0.5 mm; left and right agree" in text
