"""The motion of a sequence: transforms, what the views show, the plot; with the real core and known motion."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    addTransform,
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
    assert "5 frames laid on frame 1" in series.ui.sequenceResultLabel.text


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


def sequenceOfFile(path):
    """A sequence that is read from a 4D NIfTI file whose qform and sform lie 10 mm apart."""
    nibabel = pytest.importorskip("nibabel", reason="it writes headers that contradict themselves")
    voxels = np.random.default_rng(0).integers(0, 200, (12, 14, 16, FRAMES)).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    image.set_qform(np.eye(4), code=1)
    moved = np.eye(4)
    moved[0, 3] = 10.0
    image.set_sform(moved, code=2)
    nibabel.save(image, path)
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Stored")
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(sequence)
    sequence.SetAndObserveStorageNodeID(storage.GetID())
    return sequence


def test_what_the_files_header_contradicts_stays_in_the_panel(series, still, tmp_path, chosen):
    series.p.sequence = sequenceOfFile(tmp_path / "odd.nii.gz")
    idle()
    press(series)
    label = series.ui.sequenceResultLabel
    assert "⚠ The qform and the sform of odd.nii.gz place it up to 10 mm apart" in label.text and not label.isHidden()
    series.ui.sequencePageButton.click()  # what else is said does not take their place
    assert "odd.nii.gz place it" in label.text
    waitFor(series, lambda: not series.sequenceTab.drawing)
    assert "odd.nii.gz place it" in label.text and label.enabled


def test_each_frames_own_file_is_asked(series, still, monkeypatch):
    """Frames may have been read one by one."""
    from SpatialDiffusionRegistrationLib import sequences

    names = {series.sequence.GetNthDataNode(index): f"file {index} is odd" for index in (1, 3)}
    asked = lambda node: (names[node],) if node in names else ()  # noqa: E731
    monkeypatch.setattr(sequences.scene, "headerWarnings", asked)
    press(series)
    assert series.ui.sequenceResultLabel.text.splitlines()[1:] == ["⚠ file 1 is odd", "⚠ file 3 is odd"]


# Whether it is still true


@pytest.fixture
def still(monkeypatch):
    """A motion that is known beforehand in place of the core's: each frame goes back by as much as it has moved."""
    from SpatialDiffusionRegistrationLib import engine

    from SpatialDiffusionCore.many.frames import open_series
    from SpatialDiffusionCore.many.motion import SeriesRegistration

    def steps(frames, reference, transform, beat=None):
        for index in range(1, 4):
            yield SimpleNamespace(index=index, count=3)
        matrices = np.tile(np.eye(4), (len(frames), 1, 1))
        matrices[:, :3, 3] = -SHIFTS[: len(frames)]
        ones = np.ones(len(frames))
        series = open_series(frames)
        return SeriesRegistration(series, 0, transform, matrices, ones, ones, ones, np.zeros(3), 50.0)

    monkeypatch.setattr(engine, "seriesSteps", steps)


def result(series):
    idle()
    return series.ui.sequenceResultLabel.text, series.ui.sequenceResultLabel.enabled


@pytest.mark.parametrize("what", ["other", "hardened", "transforms", "frames"])
def test_a_result_that_is_not_true_any_more_is_gray_with_a_word(series, still, what):
    press(series)
    assert result(series)[1] and "Not true" not in result(series)[0]
    volume = series.browser.GetProxyNode(series.sequence)
    if what == "other":
        series.p.sequence, _browser = sequenceOf(SHIFTS[:2], "Another")
        expected = "it is of “Series”, and another sequence is selected"
    elif what == "hardened":
        volume.SetAndObserveTransformNodeID(None)
        expected = "is not under its transforms any more"
    elif what == "transforms":
        slicer.mrmlScene.RemoveNode(motions(series)[0])
        expected = "The transforms of “Series” are not in the scene any more"
    else:
        series.sequence.RemoveDataNodeAtValue("8")
        expected = "“Series” has other frames now"
    text, enabled = result(series)
    assert text.startswith("Not true any more: ") and expected in text.splitlines()[0] and not enabled


def test_another_name_of_the_sequence_does_not_name_the_page(series, still, chosen, tmp_path):
    """The page is of what was registered, whatever is selected by now."""
    press(series)
    series.p.sequence, _browser = sequenceOf(SHIFTS[:2], "Another")
    idle()
    series.ui.sequencePageButton.click()
    waitFor(series, lambda: not series.sequenceTab.drawing)
    assert (tmp_path / "review of Series" / "index.html").is_file()


def motions(series):
    """The sequences of transforms, first made first."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSequenceNode")
    return [node for node in nodes if node.GetDataNodeClassName() == "vtkMRMLLinearTransformNode"]


def test_a_second_run_does_not_move_the_frames_twice(series, still):
    from SpatialDiffusionRegistrationLib.scene import voxelToWorld

    press(series)
    press(series)
    assert len(motions(series)) == 2
    volume = series.browser.GetProxyNode(series.sequence)
    assert volume.GetParentTransformNode() is series.browser.GetProxyNode(motions(series)[1])
    for index in (1, 3):
        series.browser.SetSelectedItemNumber(index)
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(series.browser)
        np.testing.assert_allclose(voxelToWorld(volume)[:3, 3], -SHIFTS[index], atol=1e-6)


def test_the_transforms_of_the_person_stay_above_those_of_the_motion(series, still):
    parent = addTransform("Mine", (7, 0, 0))
    volume = series.browser.GetProxyNode(series.sequence)
    volume.SetAndObserveTransformNodeID(parent.GetID())
    press(series)
    press(series)
    transform = volume.GetParentTransformNode()
    assert transform is series.browser.GetProxyNode(motions(series)[1])
    assert transform.GetParentTransformNode() is parent


@pytest.mark.parametrize("how", ["fewer", "more", "other"])
def test_frames_that_are_changed_in_mid_run_end_it(series, still, how):
    before = saved()
    series.ui.sequenceRunButton.click()
    waitFor(series, lambda: series.ui.sequenceProgressBar.maximum > 0)
    frame = slicer.vtkMRMLScalarVolumeNode()
    frame.Copy(series.sequence.GetNthDataNode(0))
    if how != "more":
        series.sequence.RemoveDataNodeAtValue("4")
    if how != "fewer":
        series.sequence.SetDataNodeAtValue(frame, "99")
    waitFor(series, lambda: not series.sequenceTab.running)
    assert "were changed while they were registered" in series.ui.sequenceMessageLabel.text
    assert not motions(series) and len(saved()) == len(before)


def test_the_browser_may_play_in_mid_run(series, still):
    """What the views show then is another frame; the frames themselves stay."""
    series.ui.sequenceRunButton.click()
    waitFor(series, lambda: series.ui.sequenceProgressBar.maximum > 0)
    series.browser.SetSelectedItemNumber(3)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(series.browser)
    waitFor(series, lambda: not series.sequenceTab.running)
    from SpatialDiffusionRegistrationLib.scene import voxelToWorld

    volume = series.browser.GetProxyNode(series.sequence)
    np.testing.assert_allclose(voxelToWorld(volume)[:3, 3], -SHIFTS[3], atol=1e-6)
    assert result(series)[1]


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
