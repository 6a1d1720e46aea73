"""The slice views: what a registration and its review show, where, and that all of it is given back."""

from __future__ import annotations

import numpy as np
import pytest

from SlicerHarness import application
from SlicerHarness.fixtures import (
    idle,
    register,
    savedScene,
    sceneState,
    scripted,
    slicer,
    smallVolume,
    untilStep,
    waitFor,
)


@pytest.fixture
def window(panel, monkeypatch):
    """Scripted steps; A is moving, F is fixed, X has nothing to do with them.  Views: A over X, zoomed and moved."""
    scripted(monkeypatch, panel)
    panel.A, panel.F = smallVolume("A", 1, (20, 30, 40)), smallVolume("F", 2, (50, 20, 20))
    panel.X = smallVolume("X")
    panel._parameterNode.movingVolume, panel._parameterNode.fixedVolume = panel.A, panel.F
    slicer.util.setSliceViewerLayers(background=panel.X, foreground=panel.A, foregroundOpacity=0.3, fit=True)
    logic = slicer.app.layoutManager().sliceWidget("Red").sliceLogic()
    logic.SetSliceOffset(3.0)
    logic.GetSliceNode().SetFieldOfView(33, 33, 1)
    logic.GetSliceNode().SetXYZOrigin(4, 5, 0)
    idle()
    return panel


def view(name):
    return slicer.app.layoutManager().sliceWidget(name)


def layers(name):
    """(background, foreground, opacity) of a view, by name."""
    node = view(name).mrmlSliceCompositeNode()
    found = [
        slicer.mrmlScene.GetNodeByID(i) if i else None
        for i in (node.GetBackgroundVolumeID(), node.GetForegroundVolumeID())
    ]
    assert None not in [
        each for each, i in zip(found, (node.GetBackgroundVolumeID(), node.GetForegroundVolumeID())) if i
    ], "a view shows what is not in the scene"
    return [each.GetName() if each else None for each in found] + [node.GetForegroundOpacity()]


def show(name, background, foreground=None):
    node = view(name).mrmlSliceCompositeNode()
    node.SetBackgroundVolumeID(background.GetID() if background else None)
    node.SetForegroundVolumeID(foreground.GetID() if foreground else None)


# Giving back


@pytest.mark.parametrize("preview", [True, False])
def test_cancel_gives_back_zoom_offset_and_field_of_view_of_every_view(window, preview):
    window._parameterNode.livePreview = preview
    before = savedScene()
    window.ui.registerButton.click()
    untilStep(window)
    if preview:
        assert layers("Red")[:2] == ["F", "A"]
    window.ui.registerButton.click()
    assert savedScene() == before


def test_a_failure_gives_back_the_views(window, monkeypatch):
    scripted(monkeypatch, window, raises=RuntimeError("no"))
    before = savedScene()
    window.ui.registerButton.click()
    waitFor(window)
    assert "no" in window.ui.messageLabel.text and savedScene() == before


def test_undo_gives_back_the_views(window):
    before = savedScene()
    register(window)
    assert savedScene() != before
    window.ui.undoButton.click()
    assert savedScene() == before


# Which views


def test_only_views_that_show_the_pair_are_touched(window):
    show("Yellow", window.X)
    show("Green", window.F)
    before = {name: (layers(name), view(name).mrmlSliceNode().GetFieldOfView()) for name in ("Yellow", "Green")}
    position = slicer.util.arrayFromVTKMatrix(view("Yellow").mrmlSliceNode().GetSliceToRAS()).tolist()
    register(window)
    assert layers("Red")[:2] == layers("Green")[:2] == ["F", "A"]
    assert layers("Yellow") == before["Yellow"][0]
    assert view("Yellow").mrmlSliceNode().GetFieldOfView() == before["Yellow"][1]
    assert slicer.util.arrayFromVTKMatrix(view("Yellow").mrmlSliceNode().GetSliceToRAS()).tolist() == position
    assert view("Green").mrmlSliceNode().GetFieldOfView() == before["Green"][1]  # it showed the fixed volume already
    for box in (window.ui.checkerboardBox, window.ui.colorBox, window.ui.flickerBox, window.ui.beforeButton):
        box.click()
        assert layers("Yellow") == before["Yellow"][0]
        box.click()
    window.ui.fadeSlider.setValue(90)
    assert layers("Yellow") == before["Yellow"][0] and layers("Red")[2] == pytest.approx(0.9)


def test_where_no_view_shows_the_pair_it_is_shown_in_all(window):
    for name in ("Red", "Yellow", "Green"):
        show(name, window.X)
    register(window)
    assert all(layers(name)[:2] == ["F", "A"] for name in ("Red", "Yellow", "Green"))


def test_empty_views_are_used(window):
    show("Yellow", None)
    register(window)
    assert layers("Yellow")[:2] == ["F", "A"]


# Review


@pytest.fixture
def registered(window):
    register(window)
    window.ui.fadeSlider.setValue(40)
    return window


MODES = {"checkerboard": "checkerboardBox", "colors": "colorBox", "flicker": "flickerBox", "before": "beforeButton"}


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_reviewing_gives_back_the_views_and_leaves_no_node(registered, mode):
    before = sceneState()
    box = getattr(registered.ui, MODES[mode])
    box.click()
    assert box.checked and sceneState() != before
    box.click()
    assert sceneState() == before


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_ways_of_reviewing_follow_each_other(registered, first, second):
    """Whatever is switched on after whatever, and off in any order, all is as before in the end."""
    if first == second:
        pytest.skip("tested alone")
    before = sceneState()
    for name in (first, second):
        getattr(registered.ui, MODES[name]).click()
    registered.registerTab.review._flick()
    for name in (first, second):
        box = getattr(registered.ui, MODES[name])
        if box.checked:
            box.click()
    assert sceneState() == before


@pytest.mark.parametrize("mode", MODES)
def test_a_scene_saved_during_review_loads_without_what_review_added(registered, mode, tmp_path):
    getattr(registered.ui, MODES[mode]).click()
    for node in (registered.A, registered.F, registered.X):
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(tmp_path / f"{node.GetName()}.nrrd"))
        assert node.GetStorageNode().WriteData(node)
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear()
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Import()
    volumes = sorted(node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLVolumeNode"))
    assert volumes == ["A", "F", "X"]
    assert {layer for name in ("Red", "Yellow", "Green") for layer in layers(name)[:2]} <= {"A", "F", None}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["A", "F"])
def test_deleting_a_volume_during_review_ends_it(registered, mode, which):
    getattr(registered.ui, MODES[mode]).click()
    slicer.mrmlScene.RemoveNode(getattr(registered, which))
    idle()
    assert not getattr(registered.ui, MODES[mode]).checked
    hidden = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLVolumeNode") if node.GetHideFromEditors()]
    assert hidden == []


def test_colors_are_red_and_cyan_and_gray_where_they_agree(registered):
    """What the documentation says the colors are, in the pixels that MRML draws."""
    data = np.zeros((30, 30, 30), np.float32)
    moving, fixed = data.copy(), data.copy()
    moving[:, 5:20, 5:12] = fixed[:, 5:20, 12:25] = 100  # k, j, i
    moving[:, 22:28, 5:25] = fixed[:, 22:28, 5:25] = 100
    for node, array in ((registered.A, moving), (registered.F, fixed)):
        slicer.util.updateVolumeFromArray(node, array)
        node.GetScalarVolumeDisplayNode().SetAutoWindowLevel(False)
        node.GetScalarVolumeDisplayNode().SetWindowLevelMinMax(0, 100)
        node.SetAndObserveTransformNodeID(None)
    idle()
    registered.ui.colorBox.setChecked(True)
    view("Red").sliceLogic().FitSliceToBackground()
    view("Red").sliceLogic().SetSliceOffset(15.0)
    image = application.sliceImage("Red", (330, 330))
    pixels = {
        (color.red(), color.green(), color.blue())
        for color in (image.pixelColor(x, y) for x in range(0, 330, 5) for y in range(0, 330, 5))
    }
    pure = {tuple(int(round(c / 255)) for c in pixel) for pixel in pixels if all(c < 8 or c > 247 for c in pixel)}
    assert pure == {(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)}
    registered.ui.colorBox.setChecked(False)


def test_the_checkerboard_has_squares_of_both_as_they_are_seen(registered):
    """Constant volumes: every voxel is one of the two gray values, in about equal shares."""
    for node, value in ((registered.A, 25.0), (registered.F, 75.0)):
        slicer.util.updateVolumeFromArray(node, np.full((30, 30, 30), value, np.float32))
        node.SetAndObserveTransformNodeID(None)
        node.GetScalarVolumeDisplayNode().SetAutoWindowLevel(False)
        node.GetScalarVolumeDisplayNode().SetWindowLevelMinMax(0, 100)
    idle()
    registered.ui.checkerboardBox.setChecked(True)
    board = slicer.mrmlScene.GetNodeByID(view("Red").mrmlSliceCompositeNode().GetBackgroundVolumeID())
    values, counts = np.unique(slicer.util.arrayFromVolume(board), return_counts=True)
    np.testing.assert_allclose(values, (64, 191), atol=2)
    assert 0.3 < counts[0] / counts.sum() < 0.7
    registered.ui.checkerboardBox.setChecked(False)


def test_the_review_follows_a_transform_that_is_changed_meanwhile(registered):
    """Colors are copies under the same transform, so that a correction by hand is seen at once."""
    registered.ui.colorBox.setChecked(True)
    red = slicer.mrmlScene.GetNodeByID(view("Red").mrmlSliceCompositeNode().GetForegroundVolumeID())
    assert red.GetParentTransformNode() is registered.A.GetParentTransformNode() is not None
    assert red.GetImageData() is registered.A.GetImageData()
    registered.ui.colorBox.setChecked(False)


def test_a_pair_can_be_reviewed_before_it_is_registered(window):
    before = sceneState()
    assert window.ui.reviewSection.enabled and not window.ui.beforeButton.enabled
    window.ui.colorBox.setChecked(True)
    window.ui.colorBox.setChecked(False)
    assert sceneState() == before
