"""What a registration may write to, and what it must leave alone: transforms, volumes, companions, stale results."""

from __future__ import annotations

import numpy as np
import pytest
import vtk

from SlicerHarness.fixtures import (
    SHIFT,
    add,
    addTransform,
    idle,
    qt,
    register,
    savedScene,
    scripted,
    slicer,
    smallVolume,
    waitFor,
)


@pytest.fixture
def window(panel, monkeypatch):
    """The window with scripted steps, and the volumes A, B and fixed F; A and F are chosen."""
    panel.calls = scripted(monkeypatch, panel)
    panel.A, panel.B, panel.F = smallVolume("A", 1), smallVolume("B", 2), smallVolume("F", 3)
    panel.p = panel._parameterNode
    panel.p.movingVolume, panel.p.fixedVolume = panel.A, panel.F
    idle()
    return panel


@pytest.fixture
def asked(monkeypatch):
    """The questions that were asked; the answer is yes unless `asked.answer` says otherwise."""

    class Asked(list):
        answer = True

    questions = Asked()

    def confirm(text, **_options):
        questions.append(text)
        return questions.answer

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", confirm)
    return questions


def under(node, parent):
    node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def shiftOf(node):
    return slicer.util.arrayFromTransformMatrix(node)[:3, 3]


def seenAt(volume):
    from SpatialDiffusionRegistrationLib.scene import voxelToWorld

    return voxelToWorld(volume)[:3, 3]


def check(window, name):
    """Check a node under "Also move"."""
    widget = window.ui.alsoMoveList
    item = next(widget.item(row) for row in range(widget.count) if widget.item(row).text() == name)
    item.setCheckState(qt.Qt.Checked)


# The person's own transforms


def test_a_transform_of_the_scene_is_never_chosen_by_itself(window, loaded):
    """Whatever is done to the volumes, the outputs and the module, a planning transform stays what it was."""
    implant = under(add("vtkMRMLModelNode", "Implant"), addTransform("My planning transform", (99, 0, 0)))
    p, planning = window.p, implant.GetParentTransformNode()
    resampled = add("vtkMRMLScalarVolumeNode", "Resampled")
    for change in (
        lambda: setattr(p, "outputVolume", resampled),
        lambda: setattr(p, "outputVolume", None),
        loaded.exit,
        loaded.enter,
        lambda: p.Modified(),
        lambda: setattr(p, "movingVolume", None),
        lambda: setattr(p, "movingVolume", window.A),
    ):
        change()
        idle()
        assert p.outputTransform is None and window.ui.outputTransformSelector.currentNode() is None
    register(window)
    assert p.outputTransform is not planning
    np.testing.assert_array_equal(shiftOf(planning), (99, 0, 0))


@pytest.mark.parametrize(
    "parameter, className",
    [
        ("outputTransform", "vtkMRMLLinearTransformNode"),
        ("initialTransform", "vtkMRMLLinearTransformNode"),
        ("outputVolume", "vtkMRMLScalarVolumeNode"),
        ("movingVolume", "vtkMRMLScalarVolumeNode"),
        ("fixedMask", "vtkMRMLLabelMapVolumeNode"),
        ("movingLandmarks", "vtkMRMLMarkupsFiducialNode"),
    ],
)
def test_deleting_a_chosen_node_chooses_no_other(window, parameter, className):
    """A selector whose current row goes makes another row current: that must not become the choice."""
    add(className, "Mine, before")
    chosen = add(className, "Chosen")
    add(className, "Mine, after")
    setattr(window.p, parameter, chosen)
    slicer.mrmlScene.RemoveNode(chosen)
    idle()
    assert getattr(window.p, parameter) is None


def test_another_moving_volume_does_not_overwrite_the_first_result(window):
    register(window)
    first = window.p.outputTransform
    window.p.movingVolume = window.B
    assert window.p.outputTransform is None
    register(window)
    assert window.B.GetParentTransformNode() is not first and window.A.GetParentTransformNode() is first
    np.testing.assert_allclose(seenAt(window.A), SHIFT)


def test_another_fixed_volume_does_not_overwrite_the_outputs(window):
    resampled = window.p.outputVolume = add("vtkMRMLScalarVolumeNode", "Resampled")
    window.p.outputTransform = addTransform("Chosen")
    register(window)
    window.p.fixedVolume = window.B
    assert window.p.outputTransform is None and window.p.outputVolume is None
    image = resampled.GetImageData()
    register(window)
    assert resampled.GetImageData() is image


def test_registering_the_same_pair_again_fills_the_same_transform(window):
    register(window)
    output = window.p.outputTransform
    register(window)
    assert window.p.outputTransform is output


def test_a_scene_that_was_loaded_keeps_its_output(window, loaded):
    window.p.outputTransform = addTransform("Chosen")
    loaded.exit()
    loaded.enter()
    assert window.p.outputTransform.GetName() == "Chosen"


def test_what_else_the_output_moves_is_named_and_confirmed(window, asked):
    output = window.p.outputTransform = addTransform("Mine", (1, 2, 3))
    implant = under(add("vtkMRMLModelNode", "Implant"), under(addTransform("Between"), output))
    before = savedScene()
    asked.answer = False
    window.p.Modified()
    assert "“Implant”" in window.ui.outputHintLabel.text
    window.ui.registerButton.click()
    assert "“Mine” also moves “Implant”" in asked[0] and not window.registerTab.running
    assert savedScene() == before
    asked.answer = True
    register(window)
    assert implant.GetParentTransformNode().GetParentTransformNode() is output and len(asked) == 2


def test_companions_are_no_strangers_to_the_output(window, asked):
    add("vtkMRMLModelNode", "Follows")
    idle()
    check(window, "Follows")
    register(window)
    register(window)
    assert not asked


# Companions


def test_companions_of_one_volume_do_not_follow_another(window):
    from SpatialDiffusionRegistrationLib import parameters

    model = add("vtkMRMLModelNode", "Of A")
    idle()
    check(window, "Of A")
    register(window)
    window.p.movingVolume = window.B
    assert parameters.nodeList(window.p, parameters.ALSO_MOVE_ROLE) == []
    parent = model.GetParentTransformNode()
    register(window)
    assert model.GetParentTransformNode() is parent and window.B.GetParentTransformNode() is not parent


def test_what_belongs_to_the_moving_volume_is_offered_first(window):
    """The same study, the same parent transform, a segmentation drawn on it."""
    widget = window.ui.alsoMoveList
    alien = add("vtkMRMLModelNode", "Alien")
    study, sibling = add("vtkMRMLModelNode", "In the same study"), add("vtkMRMLModelNode", "Under the same transform")
    drawn = add("vtkMRMLSegmentationNode", "Drawn on it")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    for node, parent in ((window.A, item), (study, item), (alien, hierarchy.GetSceneItemID())):
        hierarchy.CreateItem(parent, node)
    placed = addTransform("Placed")
    under(window.A, placed)
    under(sibling, placed)
    drawn.SetNodeReferenceID(drawn.GetReferenceImageGeometryReferenceRole(), window.A.GetID())
    window.p.Modified()
    names = [widget.item(row).text() for row in range(widget.count)]
    assert set(names[:3]) == {"Drawn on it", "In the same study", "Under the same transform"}
    assert names.index("Alien") > 2


def test_checking_keeps_the_place_in_the_list(window, loaded):
    for number in range(40):
        add("vtkMRMLModelNode", f"m{number:02d}")
    idle()
    loaded.container.resize(440, 900)
    loaded.container.show()
    widget = window.ui.alsoMoveList
    widget.setCurrentRow(30)
    widget.scrollToItem(widget.item(30))
    idle()
    before = widget.verticalScrollBar().value()
    widget.item(30).setCheckState(qt.Qt.Checked)
    idle()
    assert widget.currentRow == 30 and widget.verticalScrollBar().value() == before > 0
    loaded.container.hide()


# The resampled volume


@pytest.mark.parametrize(
    "className", ["vtkMRMLLabelMapVolumeNode", "vtkMRMLVectorVolumeNode", "vtkMRMLDiffusionTensorVolumeNode"]
)
def test_other_kinds_of_volumes_are_neither_offered_nor_overwritten(window, className):
    node = add(className, "Precious")
    window.ui.outputVolumeSelector.setCurrentNode(node)
    assert window.ui.outputVolumeSelector.currentNode() is None
    window.p.outputVolume = node  # by a script
    assert not window.ui.registerButton.enabled and "Precious" in window.ui.registerButton.toolTip
    logic = window.logic
    with pytest.raises(ValueError, match="Precious"):
        logic.register(window.A, window.F, outputVolume=node)


@pytest.mark.parametrize("role", ["moving", "fixed", "companion"])
def test_inputs_are_not_overwritten_by_the_resampled_volume(window, role):
    check(window, "B")
    window.p.outputVolume = {"moving": window.A, "fixed": window.F, "companion": window.B}[role]
    assert not window.ui.registerButton.enabled and "overwrite" in window.ui.registerButton.toolTip


def test_an_image_of_the_persons_own_is_replaced_only_if_they_agree(window, asked):
    window.p.outputVolume = window.B
    asked.answer = False
    image = window.B.GetImageData()
    window.ui.registerButton.click()
    assert "“B” would be replaced" in asked[0] and window.B.GetImageData() is image
    asked.answer = True
    register(window)
    assert window.B.GetImageData() is not image
    register(window)  # it is the module's own now
    assert len(asked) == 2


@pytest.mark.parametrize("scalars", [np.uint8, np.int16, np.float64])
def test_the_resampled_volume_has_the_pixel_type_of_the_moving_one(window, scalars):
    """A shift by whole voxels, so the values are known: those of the moving volume 10, 20, 30 mm away."""
    data = (np.arange(20 * 22 * 24) % 251).reshape(20, 22, 24).astype(scalars)
    slicer.util.updateVolumeFromArray(window.A, data)
    output = window.p.outputVolume = add("vtkMRMLScalarVolumeNode", "Resampled")
    large = slicer.util.addVolumeFromArray(np.random.default_rng(0).random((60, 60, 60)).astype(np.float32), name="L")
    window.p.fixedVolume = large
    register(window)
    result = slicer.util.arrayFromVolume(output)
    assert result.dtype == scalars and result.shape == (60, 60, 60)
    np.testing.assert_array_equal(result[30:50, 20:42, 10:34], data)
    assert not result[:30].any() and not result[:, :20].any() and not result[..., :10].any()
    assert window.p.outputTransform is None and seenAt(window.A).tolist() == [0, 0, 0]


def test_a_failure_after_the_output_was_chosen_leaves_it_as_it_was(panel, asked, monkeypatch):
    scripted(monkeypatch, panel, raises=RuntimeError("no"))
    panel._parameterNode.movingVolume, panel._parameterNode.fixedVolume = smallVolume("A", 1), smallVolume("F", 2)
    output = panel._parameterNode.outputVolume = smallVolume("Mine", 3)
    image = output.GetImageData()
    before = savedScene()
    panel.ui.registerButton.click()
    waitFor(panel)
    assert asked and "failed" in panel.ui.messageLabel.text
    assert output.GetImageData() is image and savedScene() == before


def test_what_fails_at_the_very_end_is_undone(window, asked, monkeypatch):
    """The result can not be stored: the resampled volume, the transform and the views are as before."""
    from SpatialDiffusionRegistrationLib import task

    output = window.p.outputVolume = smallVolume("Mine", 4)
    window.p.outputTransform = addTransform("Chosen", (1, 2, 3))
    window.p.Modified()
    image, before = output.GetImageData(), savedScene()

    def fail(*_arguments):
        raise RuntimeError("no room")

    monkeypatch.setattr(task.resampling, "copyWindow", fail)
    window.ui.registerButton.click()
    waitFor(window)
    assert "no room" in window.ui.messageLabel.text
    assert output.GetImageData() is image and savedScene() == before


# Results that are not true any more


def test_the_panel_names_its_pair(window):
    register(window)
    assert window.ui.pairValue.text == "A → F" and window.ui.stateValue.isHidden()
    assert window.ui.similarityValue.enabled


@pytest.mark.parametrize("how", ["hardened", "edited", "taken out", "fixed moved"])
def test_a_result_that_is_not_true_any_more_is_grayed_with_a_word(window, how):
    register(window)
    output = window.p.outputTransform
    if how == "hardened":
        window.A.HardenTransform()
    elif how == "edited":
        slicer.util.updateTransformMatrixFromArray(output, np.eye(4))
    elif how == "taken out":
        window.A.SetAndObserveTransformNodeID(None)
    else:
        under(window.F, addTransform("Away", (5, 0, 0)))
    idle()
    ui = window.ui
    assert "Not true any more" in ui.stateValue.text and not ui.stateValue.isHidden()
    assert not ui.similarityValue.enabled and not ui.undoButton.enabled
    word = {"hardened": "hardened", "edited": "changed", "taken out": "taken out", "fixed moved": "moved"}[how]
    assert word in ui.stateValue.text


def test_a_result_of_other_volumes_than_the_selected_says_so(window):
    register(window)
    output = window.p.outputTransform
    window.p.movingVolume = window.B
    idle()
    assert window.ui.pairValue.text == "A → F" and "other volumes are selected" in window.ui.stateValue.text
    assert not window.ui.similarityValue.enabled
    window.p.movingVolume = window.A
    window.p.outputTransform = output
    assert window.ui.stateValue.isHidden() and window.ui.similarityValue.enabled


def test_show_before_shows_before_even_after_hardening(window):
    register(window)
    composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
    window.A.HardenTransform()
    idle()
    np.testing.assert_allclose(seenAt(window.A), SHIFT)
    window.ui.beforeButton.click()
    shown = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID())
    np.testing.assert_allclose(seenAt(shown), (0, 0, 0), atol=1e-9)
    window.ui.beforeButton.click()
    assert composite.GetForegroundVolumeID() == window.A.GetID()


def test_a_volume_that_became_another_can_not_be_shown_before(window):
    register(window)
    slicer.util.updateVolumeFromArray(window.A, np.zeros((4, 4, 4), np.float32))
    idle()
    assert not window.ui.beforeButton.enabled and "changed" in window.ui.stateValue.text


def test_before_of_a_resampled_volume_is_the_moving_volume_itself(window):
    window.p.outputVolume = add("vtkMRMLScalarVolumeNode", "Resampled")
    register(window)
    composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")[0]
    assert composite.GetForegroundVolumeID() == window.p.outputVolume.GetID()
    window.ui.beforeButton.click()
    shown = slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID())
    np.testing.assert_allclose(seenAt(shown), seenAt(window.A))
    assert shown.GetImageData() is window.A.GetImageData()
    window.ui.beforeButton.click()


# Other ways in


def test_the_hint_says_what_becomes_of_the_outputs(window):
    ui, p = window.ui, window.p
    assert ui.outputHintLabel.text == "A new transform will be made."
    p.outputVolume = add("vtkMRMLScalarVolumeNode", "Resampled")
    assert "Only a resampled volume" in ui.outputHintLabel.text
    p.outputTransform = addTransform("Mine")
    assert ui.outputHintLabel.text == "“Mine” will be overwritten."
    p.initialTransform = p.outputTransform
    assert not ui.registerButton.enabled and "both the initial and the output" in ui.registerButton.toolTip


def test_label_volumes_can_be_resampled_without_new_values(window):
    labels = slicer.util.addVolumeFromArray(
        np.random.default_rng(0).choice([0, 3, 200], (20, 22, 24)).astype(np.uint8),
        name="labels",
        nodeClassName="vtkMRMLLabelMapVolumeNode",
    )
    under(labels, addTransform("Half a voxel", (0.4, 0.3, 0)))
    result = window.logic.resample(labels, window.F)
    array = slicer.util.arrayFromVolume(result)
    assert result.IsA("vtkMRMLLabelMapVolumeNode") and array.dtype == np.uint8
    assert set(np.unique(array)) <= {0, 3, 200}
    np.testing.assert_array_equal(array, slicer.util.arrayFromVolume(labels))  # nearest: less than half a voxel
    with pytest.raises(ValueError, match="overwrite"):
        window.logic.resample(labels, window.F, outputVolume=labels)


def test_resampling_goes_by_where_both_are_seen(window):
    """Against numpy: a volume under a transform, sampled on a grid under another, at whole voxels."""
    from SpatialDiffusionRegistrationLib import resampling

    data = np.random.default_rng(5).integers(0, 1000, (20, 22, 24)).astype(np.int16)
    volume = slicer.util.addVolumeFromArray(data, name="volume")
    under(volume, addTransform("There", (2, 3, 4)))
    under(window.F, addTransform("Here", (1, 1, 1)))
    image = resampling.onGridOf(volume, window.F)
    assert image.GetScalarType() == vtk.VTK_SHORT
    result = resampling.toArray(image).transpose(2, 1, 0)  # k, j, i as data
    np.testing.assert_array_equal(result[3:, 2:, 1:], data[:-3, :-2, :-1])
    assert not result[:3].any() and not result[:, :2].any() and not result[..., :1].any()
