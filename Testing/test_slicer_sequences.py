"""The motion of a sequence: transforms, what the views show, the plot; with the real core and known motion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    idle,
    qt,
    savedScene,
    slicer,
    waitFor,
)

FRAMES, VOXEL = 5, 4.0
SHIFTS = np.array([[0, 0, 0], [2, 0, 0], [2, 3, 0], [0, 3, -2], [-2, 0, 1.0]])  # mm that each frame has moved


def sequenceOf(shifts, name="Series"):
    """A sequence whose frames are one lopsided object, moved in its voxels; with a browser that shows frame 1."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    grid = np.stack(np.meshgrid(*(np.arange(n) * VOXEL for n in (30, 28, 32)), indexing="ij"))  # k, j, i in mm
    spots = (((60, 52, 64), 22, 100.0), ((40, 60, 80), 10, 90.0), ((80, 40, 44), 8, 140.0), ((52, 78, 50), 7, 120.0))
    for index, shift in enumerate(shifts):
        data = np.zeros(grid.shape[1:])
        for center, size, height in spots:
            there = np.array(center, float) + shift[::-1]
            data += height * np.exp(-((grid - there[:, None, None, None]) ** 2).sum(0) / (2 * size**2))
        frame = slicer.vtkMRMLScalarVolumeNode()
        frame.SetName(f"{name} {index}")
        frame.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([VOXEL, VOXEL, VOXEL, 1.0])))
        slicer.util.updateVolumeFromArray(frame, data.astype(np.float32))
        sequence.SetDataNodeAtValue(frame, str(index * 2))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return sequence, browser


@pytest.fixture
def series(panel):
    panel.ui.tabs.setCurrentIndex(2)
    panel.sequence, panel.browser = sequenceOf(SHIFTS)
    panel.p = panel._parameterNode
    panel.p.sequence, panel.p.referenceFrame = panel.sequence, 1
    idle()
    yield panel
    panel.ui.tabs.setCurrentIndex(0)


def press(panel):
    assert panel.ui.sequenceRunButton.enabled, panel.ui.sequenceRunButton.toolTip
    panel.ui.sequenceRunButton.click()
    waitFor(panel, lambda: not panel.sequenceTab.running)


def test_every_frame_is_laid_on_the_reference(series):
    from SpatialDiffusionRegistrationLib.scene import voxelToWorld

    press(series)
    (transforms,) = [node for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode") if node is not series.sequence]
    assert transforms.GetNumberOfDataNodes() == FRAMES
    assert [transforms.GetNthIndexValue(i) for i in range(FRAMES)] == ["0", "2", "4", "6", "8"]
    assert (transforms.GetIndexName(), transforms.GetIndexUnit()) == ("time", "s")
    for index, shift in enumerate(SHIFTS):  # each frame goes back by as much as it has moved
        matrix = slicer.util.arrayFromTransformMatrix(transforms.GetNthDataNode(index))
        np.testing.assert_allclose(matrix[:3, :3], np.eye(3), atol=0.02)
        center = matrix @ np.array([64, 52, 60, 1.0])
        np.testing.assert_allclose(center[:3], np.array([64, 52, 60]) - shift, atol=0.4)
    volume = series.browser.GetProxyNode(series.sequence)
    transform = series.browser.GetProxyNode(transforms)
    assert volume.GetParentTransformNode() is transform
    for index in (1, 3):  # what the views show follows the frame
        series.browser.SetSelectedItemNumber(index)
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(series.browser)
        np.testing.assert_allclose(voxelToWorld(volume)[:3, 3], -SHIFTS[index], atol=0.6)
        assert volume.GetParentTransformNode() is transform
    assert "5 frames laid on frame 1" in series.ui.sequenceMessageLabel.text


def test_the_motion_is_in_a_table_and_a_chart(series):
    press(series)
    tables = slicer.util.getNodesByClass("vtkMRMLTableNode")
    table = next(node for node in tables if node.GetNumberOfRows() == FRAMES)
    assert table.GetColumnName(0) == "frame" and table.GetNumberOfColumns() == 8
    shifts = np.array([[float(table.GetCellText(row, column)) for column in (1, 2, 3)] for row in range(FRAMES)])
    np.testing.assert_allclose(shifts, -SHIFTS, atol=0.4)
    displacement = [float(table.GetCellText(row, 7)) for row in range(FRAMES)]
    assert displacement[0] == 0
    np.testing.assert_allclose(displacement[1:], np.abs(np.diff(SHIFTS, axis=0)).sum(1), atol=1.0)
    charts = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    assert len(charts) == 1 and charts[0].GetNumberOfPlotSeriesNodes() == 7
    assert series.ui.sequencePlotButton.enabled


def saved():
    """The scene as it would be saved; without the default settings of a synchronization, which a browser keeps when the
    sequence is taken out of it (vtkMRMLSequenceBrowserNode::RemoveSynchronizedSequenceNode)."""
    return [
        line.rstrip(">")
        for line in savedScene()
        if "SynchronizationPropertiesMap1" not in line and "SequenceBrowser>" not in line
    ]


@pytest.mark.parametrize("how", ["cancel", "failure"])
def test_the_scene_is_untouched_by_cancel_and_failure(series, monkeypatch, how):
    before = saved()
    if how == "failure":
        from SpatialDiffusionRegistrationLib import sequences

        def fail(*_arguments):
            raise RuntimeError("no room")

        monkeypatch.setattr(sequences, "motionFigures", fail)
        press(series)
        assert "no room" in series.ui.sequenceMessageLabel.text
    else:
        series.ui.sequenceRunButton.click()
        waitFor(series, lambda: series.ui.sequenceProgressBar.maximum > 0)
        series.ui.sequenceRunButton.click()
        assert "as it was" in series.ui.sequenceMessageLabel.text
    assert saved() == before


def test_closing_the_scene_in_mid_run(series):
    series.ui.sequenceRunButton.click()
    waitFor(series, lambda: series.ui.sequenceProgressBar.maximum > 0)
    slicer.mrmlScene.Clear()
    assert not series.sequenceTab.running and series._parameterNode.sequence is None


def test_what_can_not_be_registered_gets_a_sentence(series):
    button = series.ui.sequenceRunButton
    series.p.referenceFrame = 9
    assert "has no frame 9" in button.toolTip
    series.p.referenceFrame = 0
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Empty")
    series.p.sequence = empty
    assert "fewer than two frames" in button.toolTip and not button.enabled
    for index in range(2):
        empty.SetDataNodeAtValue(slicer.vtkMRMLLinearTransformNode(), str(index))
    series.p.Modified()
    assert "does not hold volumes" in button.toolTip
    series.p.sequence = None
    assert button.text == "Select a sequence of volumes"
    with pytest.raises(ValueError, match="Select a sequence"):
        series.logic.registerSequence(None)


def test_scripts_register_a_sequence(series):
    steps = []
    transforms = series.logic.registerSequence(series.sequence, reference=2, progress=steps.append)
    assert transforms.IsA("vtkMRMLSequenceNode") and len(steps) >= 2
    assert series.logic.motion.reference == 2
    matrix = slicer.util.arrayFromTransformMatrix(transforms.GetNthDataNode(2))
    np.testing.assert_allclose(matrix, np.eye(4), atol=1e-9)
    before = savedScene()
    assert series.logic.registerSequence(series.sequence, progress=lambda step: False) is None
    assert savedScene() == before


# The page to review


def pairsOf(folder):
    """Names of the frames on a review page, in its order."""
    data = (folder / "data.js").read_text(encoding="ascii")
    return [row["moving"] for row in json.loads(data[data.index("{") : data.rindex("}") + 1])["pairs"]]


@pytest.fixture
def chosen(monkeypatch, tmp_path):
    """The folder that the person chooses; `opened` is what would have been opened in the browser."""
    from SpatialDiffusionRegistrationLib import sequence_tab

    opened = []
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_arguments: str(tmp_path))
    monkeypatch.setattr(sequence_tab, "openFile", lambda path: opened.append(Path(path)) or True)
    return opened


def test_every_frame_is_on_the_review_page_under_the_number_that_the_panel_gives_it(series, chosen, tmp_path):
    assert not series.ui.sequencePageButton.enabled
    press(series)
    before = savedScene()
    series.ui.sequencePageButton.click()
    assert series.ui.sequenceRunButton.text == "Cancel" and not series.ui.registerButton.enabled
    waitFor(series, lambda: not series.sequenceTab.drawing)
    folder = tmp_path / f"review of {series.sequence.GetName()}"
    assert chosen == [folder / "index.html"] and str(folder) in series.ui.sequenceMessageLabel.text
    assert sorted(pairsOf(folder)) == [f"frame {number}" for number in range(1, FRAMES + 1)]
    assert savedScene() == before and series.ui.sequencePageButton.enabled
    assert series.ui.sequenceRunButton.text == "Register the frames"


def test_drawing_the_page_can_be_cancelled(series, chosen):
    press(series)
    series.ui.sequencePageButton.click()
    series.ui.sequenceRunButton.click()
    assert not series.sequenceTab.drawing and not chosen
    assert "not whole" in series.ui.sequenceMessageLabel.text and series.ui.sequencePageButton.enabled


def test_closing_the_scene_ends_the_drawing(series, chosen):
    press(series)
    series.ui.sequencePageButton.click()
    slicer.mrmlScene.Clear()
    idle()
    assert not series.sequenceTab.drawing and not chosen and not series.ui.sequencePageButton.enabled


def test_a_script_gets_the_page_too(series, tmp_path):
    from SpatialDiffusionRegistration import SpatialDiffusionRegistrationLogic

    SpatialDiffusionRegistrationLogic().registerSequence(series.sequence, reference=0, review=tmp_path / "page")
    assert len(pairsOf(tmp_path / "page")) == FRAMES
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="thesis.txt"):
        SpatialDiffusionRegistrationLogic().registerSequence(series.sequence, review=tmp_path / "own")
