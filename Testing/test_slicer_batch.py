"""The batch: what holds for every volume, looking at rows, where the volumes come from, what it leaves in the scene."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    BRAIN,
    addTransform,
    idle,
    savedScene,
    scripted,
    slicer,
    smallVolume,
    waitFor,
)


@pytest.fixture
def window(panel, monkeypatch):
    """Scripted steps; A, B and C are to be registered to F."""
    panel.calls = scripted(monkeypatch, panel)
    panel.A, panel.B, panel.C, panel.F = (smallVolume(name, seed) for seed, name in enumerate("ABCF"))
    panel.p = panel._parameterNode
    panel.p.fixedVolume = panel.F
    panel.ui.tabs.setCurrentIndex(1)
    idle()
    yield panel
    panel.ui.tabs.setCurrentIndex(0)


def addAll(window):
    window.ui.batchSourceCombo.setCurrentIndex(0)
    window.ui.batchAddSceneButton.click()


def run(window):
    assert window.ui.batchRunButton.enabled, window.ui.batchRunButton.toolTip
    window.ui.batchRunButton.click()
    waitFor(window)


def statuses(window):
    return [item.status for item in window.batchTab.items]


def mask(name, filled):
    data = np.zeros((20, 22, 24), np.uint8)
    data[5:15, 5:15, 5:15] = filled
    return slicer.util.addVolumeFromArray(data, name=name, nodeClassName="vtkMRMLLabelMapVolumeNode")


# The advanced settings hold


def test_the_fixed_mask_and_the_initial_transform_hold_for_every_volume(window):
    window.p.fixedMask, window.p.initialTransform = mask("inside", 1), addTransform("start", (4, 5, 6))
    window.p.movingVolume, window.p.movingMask = window.B, mask("of B", 1)
    addAll(window)
    run(window)
    assert len(window.calls) == 3
    for call in window.calls:
        assert call.fixedMask.data.sum() == 1000
        np.testing.assert_array_equal(call.init[:3, 3], (4, 5, 6))
    masked = [call.moving.name for call in window.calls if call.movingMask is not None]
    assert masked == ["B"]  # the moving mask belongs to the volume of the Register tab


@pytest.mark.parametrize("kind", ["empty mask", "no segment", "nonlinear start", "constant fixed volume"])
def test_what_every_volume_would_fail_for_is_said_before_any_work(window, kind):
    addAll(window)
    if kind == "empty mask":
        window.p.fixedMask = mask("nothing", 0)
    elif kind == "no segment":
        window.p.fixedMask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    elif kind == "nonlinear start":
        import vtk

        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "nothing")
        node.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
        window.p.initialTransform = node
    else:
        window.F.SetName("nothing")
        slicer.util.updateVolumeFromArray(window.F, np.zeros((20, 22, 24), np.float32))
    window.p.Modified()
    before = savedScene()
    if window.ui.batchRunButton.enabled:
        window.ui.batchRunButton.click()
        waitFor(window)
        said = window.ui.batchMessageLabel.text
    else:
        said = window.ui.batchRunButton.toolTip
    assert "nothing" in said and not window.calls
    assert savedScene() == before


def table(window, path):
    """The report's rows by the name of the moving volume."""
    from SpatialDiffusionRegistrationLib.report import writeReport

    writeReport(path, window.batchTab.items)
    with path.open(encoding="utf-8", newline="") as file:
        return {row["moving"]: row for row in csv.DictReader(file)}


def test_landmarks_of_the_own_volume_are_in_the_report(window, tmp_path):
    points = {}
    for name, at in (("moving points", (1, 2, 3)), ("fixed points", (11, 22, 33))):
        points[name] = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
        points[name].AddControlPointWorld(*at)
    window.p.movingVolume = window.A
    window.p.movingLandmarks, window.p.fixedLandmarks = points["moving points"], points["fixed points"]
    addAll(window)
    run(window)
    rows = table(window, tmp_path / "report.csv")
    # (1, 2, 3) moves by (10, 20, 30) to (11, 22, 33): no distance is left of 37.4 mm.
    assert rows["A"]["landmarks_after_mm"] == "0.000"
    assert float(rows["A"]["landmarks_before_mm"]) == pytest.approx(np.sqrt(1400), abs=1e-3)
    assert rows["B"]["landmarks_after_mm"] == ""


def test_the_report_begins_with_the_columns_words_and_signs_of_the_shells_table(window, monkeypatch, tmp_path):
    from SpatialDiffusionCore import report

    scripted(monkeypatch, window, probability=0.95, warnings=["Look at it."])
    addAll(window)
    run(window)
    rows = table(window, tmp_path / "report.csv")
    assert tuple(rows["A"])[: len(report.COLUMNS)] == report.COLUMNS
    item = window.batchTab.items[0]
    expected = report.row(item.result.report)
    assert {name: rows["A"][name] for name in report.COLUMNS} == expected
    assert expected["probability"] == "0.9500" and expected["translation_mm"] == "10.0 R, 20.0 A, 30.0 S"
    assert rows["A"]["why"] == "look at it; about 1 in 20 such answers is wrong"
    assert rows["A"]["transform_node"] == "A to F"
    matrix = np.fromstring(rows["A"]["matrix_moving_to_fixed_ras"], sep=" ").reshape(4, 4)
    np.testing.assert_allclose(matrix, slicer.util.arrayFromTransformMatrix(item.transformNode))
    assert "about 1 in 20 such answers is wrong" in window.ui.batchTable.item(0, 3).toolTip()


def test_a_volume_that_failed_is_in_the_report_as_in_the_shells_table(window, tmp_path):
    from SpatialDiffusionCore import report

    slicer.util.updateVolumeFromArray(window.B, np.zeros((20, 22, 24), np.float32))
    addAll(window)
    run(window)
    row = table(window, tmp_path / "report.csv")["B"]
    item = next(item for item in window.batchTab.items if item.name == "B")
    assert {name: row[name] for name in report.COLUMNS} == report.failed_row("B", "F", item.error)
    assert row["confidence"] == "failed" and "B" in row["why"]


# The page to review


@pytest.fixture
def opened(monkeypatch):
    """What would have been opened in the browser."""
    from SpatialDiffusionRegistrationLib import batch_tab

    paths = []
    monkeypatch.setattr(batch_tab, "openFile", lambda path: paths.append(path) or True)
    return paths


def pairsOf(page):
    """{moving volume: row} of a review page."""
    data = (page.parent / "data.js").read_text(encoding="ascii")
    rows = json.loads(data[data.index("{") : data.rindex("}") + 1])["pairs"]
    return {row["moving"]: row for row in rows}


def test_a_batch_with_an_output_folder_writes_a_page_and_offers_to_open_it(window, opened, tmp_path):
    slicer.util.updateVolumeFromArray(window.B, np.zeros((20, 22, 24), np.float32))
    addAll(window)
    window.ui.batchOutputPath.currentPath = str(tmp_path)
    assert not window.ui.batchPageButton.enabled
    run(window)
    page = tmp_path / "review" / "index.html"
    assert "(registrations.csv) and the review page are in" in window.ui.batchMessageLabel.text
    assert window.ui.batchPageButton.enabled
    window.ui.batchPageButton.click()
    assert opened == [str(page)]
    pairs = pairsOf(page)
    assert set(pairs) == {"A", "B", "C"} and pairs["B"]["word"] == "failed"
    assert pairs["A"]["probability"] == 0.97 and pairs["A"]["in_words"].startswith("turned 0.0°, moved 37.4 mm")
    for files in (pairs["A"]["figures"]["axial"].values(), [pairs["A"]["figures"]["thumbnail"]]):
        assert all((page.parent / name).is_file() for name in files)
    assert (tmp_path / "registrations.csv").is_file()


def test_another_batch_into_the_folder_adds_to_its_page(window, opened, tmp_path):
    window.ui.batchOutputPath.currentPath = str(tmp_path)
    addAll(window)
    run(window)
    window.p.fixedVolume = window.A
    window.ui.batchTable.selectRow(0)
    window.ui.batchRemoveButton.click()
    assert [item.name for item in window.batchTab.items] == ["B", "C"]
    run(window)
    assert len(list((tmp_path / "review" / "pairs").glob("*.json"))) == 5


def test_a_stopped_batch_has_a_page_of_what_is_done(window, tmp_path):
    window.ui.batchOutputPath.currentPath = str(tmp_path)
    addAll(window)
    window.ui.batchRunButton.click()
    waitFor(window, lambda: statuses(window)[0] == "done")
    window.ui.batchRunButton.click()
    assert list(pairsOf(tmp_path / "review" / "index.html")) == ["A"] and window.ui.batchPageButton.enabled


def test_a_folder_that_holds_something_else_is_refused_before_any_work(window, tmp_path):
    (tmp_path / "review").mkdir()
    (tmp_path / "review" / "thesis.txt").write_text("mine")
    window.ui.batchOutputPath.currentPath = str(tmp_path)
    addAll(window)
    run(window)
    assert "holds other files (thesis.txt)" in window.ui.batchMessageLabel.text and not window.calls
    assert set(statuses(window)) == {"stopped"}


def test_a_page_that_can_not_be_written_stops_no_registration(window, monkeypatch, tmp_path):
    from SpatialDiffusionRegistrationLib import engine

    def full(*_ignored):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "addToPage", full)
    window.ui.batchOutputPath.currentPath = str(tmp_path)
    addAll(window)
    run(window)
    assert set(statuses(window)) == {"done"}
    assert "page could not be written" in window.ui.batchMessageLabel.text
    assert "No space left" in window.ui.batchMessageLabel.text


def test_a_batch_without_an_output_folder_writes_nothing(window, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    addAll(window)
    run(window)
    assert not list(tmp_path.iterdir()) and not window.ui.batchPageButton.enabled


# Where the volumes come from


def test_a_folder_of_the_subject_hierarchy_is_a_source(window):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Patients")
    study = hierarchy.CreateStudyItem(folder, "Study 1")
    empty = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Empty")
    assert empty
    hierarchy.CreateItem(folder, window.A)
    hierarchy.CreateItem(study, window.C)
    hierarchy.CreateItem(hierarchy.GetSceneItemID(), window.B)
    window.p.Modified()
    combo = window.ui.batchSourceCombo
    names = [combo.itemText(index) for index in range(combo.count)]
    assert names == ["The whole scene", "“Patients”", "“Study 1”"]
    combo.setCurrentIndex(2)
    window.ui.batchAddSceneButton.click()
    assert [item.name for item in window.batchTab.items] == ["C"]
    window.ui.batchSourceCombo.setCurrentIndex(1)
    window.ui.batchAddSceneButton.click()
    assert sorted(item.name for item in window.batchTab.items) == ["A", "C"]  # with its studies, and C once


def test_new_names_are_shown(window):
    addAll(window)
    window.A.SetName("Another name")
    window.F.SetName("The fixed one")
    idle()
    assert window.ui.batchTable.item(0, 0).text() == "Another name"
    assert "The fixed one" in window.ui.batchFixedLabel.text


# Looking at rows


def look(window, row):
    window.ui.batchTable.selectRow(row)
    assert window.ui.batchLookButton.enabled
    window.ui.batchLookButton.click()


def shown():
    node = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    return [
        slicer.mrmlScene.GetNodeByID(i).GetName() if i else None
        for i in (node.GetBackgroundVolumeID(), node.GetForegroundVolumeID())
    ]


def test_a_row_can_be_looked_at_and_reviewed(window):
    addAll(window)
    window.ui.batchTable.selectRow(1)
    assert not window.ui.batchLookButton.enabled  # not registered yet
    run(window)
    look(window, 1)
    assert shown() == ["F", "B"] and window.ui.pairValue.text == "B → F"
    assert window.ui.stateValue.isHidden() and window.ui.reviewSection.enabled
    window.ui.beforeButton.click()
    assert shown()[0] == "F" and "B before registration" in shown()[1]
    window.ui.beforeButton.click()
    look(window, 2)
    assert shown() == ["F", "C"] and window.ui.pairValue.text == "C → F"
    window.p.movingVolume = window.A  # something else is chosen: back to that
    assert window.ui.pairValue.text != "C → F"


def test_a_file_is_read_again_to_be_looked_at_and_goes_again(window, tmp_path):
    for name in ("one", "two"):
        shutil.copy(BRAIN, tmp_path / f"{name}.nii.gz")
    window.ui.batchFolderPath.currentPath = str(tmp_path)
    window.ui.batchAddFolderButton.click()
    run(window)
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    look(window, 0)
    volume = window.batchTab.items[0].loaded
    assert volume.GetParentTransformNode() is window.batchTab.items[0].transformNode
    assert shown() == ["F", volume.GetName()]
    look(window, 1)
    assert volume.GetScene() is None
    window.batchTab.stopLooking()
    assert slicer.mrmlScene.GetNumberOfNodes() == nodes


def test_a_row_whose_transform_is_gone_says_so(window):
    addAll(window)
    run(window)
    slicer.mrmlScene.RemoveNode(window.batchTab.items[0].transformNode)
    idle()
    look(window, 0)
    assert "not in the scene any more" in window.ui.batchMessageLabel.text


# What it leaves behind


def test_files_leave_transforms_and_nothing_else(window, tmp_path):
    shutil.copy(BRAIN, tmp_path / "one.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"not an image")
    window.ui.batchFolderPath.currentPath = str(tmp_path)
    window.ui.batchAddFolderButton.click()
    before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")}
    run(window)
    assert statuses(window) == ["failed", "done"]
    added = [node for node in slicer.util.getNodesByClass("vtkMRMLNode") if node.GetID() not in before]
    assert added == [window.batchTab.items[1].transformNode]


def test_a_transform_that_can_not_be_written_is_no_success(window, tmp_path, monkeypatch):
    window.p.batchOutputFolder = str(tmp_path)
    addAll(window)
    before = [node.GetTransformNodeID() for node in (window.A, window.B, window.C)]
    monkeypatch.setattr(slicer.util, "saveNode", lambda *arguments: False)
    run(window)
    assert statuses(window) == ["failed"] * 3 and "could not be written" in window.batchTab.items[0].error
    assert [node.GetTransformNodeID() for node in (window.A, window.B, window.C)] == before
    assert all(item.result is None for item in window.batchTab.items)


def test_stopping_gives_back_the_item_under_way(window):
    addAll(window)
    window.ui.batchRunButton.click()
    waitFor(window, lambda: statuses(window)[1] == "running" and window.batchTab.items[1].progress)
    window.ui.batchRunButton.click()
    assert statuses(window) == ["done", "stopped", "stopped"]
    assert window.A.GetParentTransformNode() is not None and window.B.GetParentTransformNode() is None


@pytest.mark.parametrize("which", ["F", "mask", "initial"])
def test_removing_what_all_need_stops_the_batch(window, which):
    window.p.fixedMask, window.p.initialTransform = mask("inside", 1), addTransform("start", (1, 1, 1))
    nodes = {"F": window.F, "mask": window.p.fixedMask, "initial": window.p.initialTransform}
    addAll(window)
    window.ui.batchRunButton.click()
    waitFor(window, lambda: window.batchTab.items[0].progress)
    name = nodes[which].GetName()
    slicer.mrmlScene.RemoveNode(nodes[which])
    assert not window.batchTab.running and name in window.ui.batchMessageLabel.text


def test_removing_the_volume_under_way_fails_it_and_goes_on(window):
    addAll(window)
    window.ui.batchRunButton.click()
    waitFor(window, lambda: window.batchTab.items[0].progress)
    slicer.mrmlScene.RemoveNode(window.A)
    waitFor(window)
    assert [item.name for item in window.batchTab.items] == ["B", "C"] and statuses(window) == ["done", "done"]


def test_the_time_that_is_left_is_told(window):
    addAll(window)
    window.ui.batchRunButton.click()
    waitFor(window, lambda: "left" in window.ui.batchMessageLabel.text)
    waitFor(window)
    assert "3 registered, 0 failed" in window.ui.batchMessageLabel.text


def test_the_disabled_button_says_why(window):
    assert window.ui.batchRunButton.text == "Add the volumes to register"
    window.p.fixedVolume = None
    addAll(window)
    assert window.ui.batchRunButton.text.startswith("Select a fixed volume")
