"""Registration from scripts and in batches, with real brains and the real model."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    BRAIN,
    QUICK,
    REPOSITORY,
    TEMPLATE,
    duplicate,
    qt,
    quick,
    sameAsSeen,
    sceneState,
    segmentationOf,
    slicer,
    waitFor,
)


@pytest.fixture
def logic(loaded):
    return loaded.pymodule.SpatialDiffusionRegistrationLogic()


@pytest.fixture
def brains(twins):
    """The brain turned in its header, and unturned."""
    return twins.moving, twins.fixed


# One


def test_register_returns_the_transform_node(logic, brains):
    moving, fixed = brains
    steps = []
    transform = logic.register(moving, fixed, modality="any", progress=steps.append)
    assert transform.IsA("vtkMRMLLinearTransformNode") and moving.GetParentTransformNode() is transform
    assert sameAsSeen(moving, fixed) < 1.0
    assert [step.index for step in steps] == list(range(1, steps[-1].count + 1))
    assert logic.result.similarityAfter > logic.result.similarityBefore
    assert logic.result.report["transform"] == "affine"
    np.testing.assert_allclose(
        np.linalg.inv(slicer.util.arrayFromTransformMatrix(transform)), np.linalg.inv(logic.result.after), atol=1e-9
    )


def test_register_fills_what_is_given(logic, brains):
    moving, fixed = brains
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Mine")
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Resampled")
    segmentation = segmentationOf(moving)
    transform = logic.register(
        moving,
        fixed,
        movingModality="t1-brain",
        fixedModality="any",
        transform="rigid",
        outputTransform=mine,
        outputVolume=volume,
        alsoMove=[segmentation],
        steps=2,
        seed=4,
        threads=1,
        device="cpu",
    )
    assert transform is mine and segmentation.GetParentTransformNode() is mine
    assert sameAsSeen(volume, fixed) < 1e-6
    assert logic.result.report["modality"] == {"moving": "t1-brain", "fixed": "any"}


def test_the_same_call_gives_the_same_matrix(logic, brains):
    moving, fixed = brains
    matrices = []
    for _ in range(2):
        transform = logic.register(moving, fixed, **QUICK)
        matrices.append(slicer.util.arrayFromTransformMatrix(transform))
        slicer.mrmlScene.RemoveNode(transform)
    np.testing.assert_array_equal(*matrices)


def test_progress_can_cancel(logic, brains):
    before = sceneState()
    assert logic.register(*brains, progress=lambda step: step.index < 3, **QUICK) is None
    assert sceneState() == before


def test_an_error_in_progress_leaves_the_scene_unchanged(logic, brains):
    before = sceneState()

    def progress(step):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        logic.register(*brains, progress=progress, **QUICK)
    assert sceneState() == before


def test_bad_calls_raise_one_sentence(logic, brains):
    moving, fixed = brains
    before = sceneState()
    for options, expected in (
        ({"modality": "nonsense"}, "nonsense"),
        ({"transform": "bent"}, "bent"),
        ({"model": "none such"}, "none such"),
        ({"alsoMove": [fixed]}, "fixed volume"),
    ):
        with pytest.raises(ValueError, match=expected):
            logic.register(moving, fixed, **options)
    with pytest.raises(ValueError, match="Select a fixed"):
        logic.register(moving, None)
    assert sceneState() == before


def test_a_sequence_gets_a_note(logic, brains):
    moving, fixed = brains
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Sequence")
    sequence.SetDataNodeAtValue(moving, "0")
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.AddSynchronizedSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(moving, sequence, False)
    logic.register(moving, fixed, **QUICK)
    assert any("one frame of a sequence" in warning for warning in logic.result.warnings)


def examples():
    """The Python blocks of the READMEs that use the logic."""
    return [
        block
        for name in ("README.md", "SpatialDiffusionRegistration/README.md")
        for block in re.findall(r"```python\n(.*?)```", (REPOSITORY / name).read_text(encoding="utf-8"), re.S)
        if "SpatialDiffusionRegistrationLogic" in block
    ]


def test_the_readme_examples_run(loaded, scene, tmp_path, monkeypatch):
    """Each is run to its last line, beside real files with the names that it reads."""
    blocks = examples()
    assert len(blocks) >= 3
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copy(BRAIN, folder / "subject1.nii.gz")
    shutil.copy(TEMPLATE, tmp_path / "fixed.nii.gz")
    shutil.copy(BRAIN, tmp_path / "moving.nii.gz")
    labels = slicer.util.addVolumeFromArray(
        np.ones((4, 4, 4), np.uint8), name="labels", nodeClassName="vtkMRMLLabelMapVolumeNode"
    )
    assert slicer.util.saveNode(labels, str(tmp_path / "labels.nrrd"))
    monkeypatch.chdir(tmp_path)

    ended = []

    def stop(*_arguments):
        ended.append(True)
        raise SystemExit

    monkeypatch.setattr(slicer.util, "exit", stop)
    monkeypatch.setattr("SpatialDiffusionCore.pipeline.stages.DEFAULT_STEPS", 1)  # it is the examples that are tested
    for block in blocks:
        slicer.mrmlScene.Clear()
        names = {"__name__": "__main__"}
        if "movingVolume" in block:  # a line or two for a session that has the volumes
            names["movingVolume"] = slicer.util.loadVolume(str(tmp_path / "moving.nii.gz"))
            names["fixedVolume"] = slicer.util.loadVolume(str(tmp_path / "fixed.nii.gz"))
        with contextlib.suppress(SystemExit):
            exec(compile(block, "README.md", "exec"), names)
    assert len(ended) == sum("slicer.util.exit()" in block for block in blocks) >= 3
    assert (tmp_path / "moving_to_fixed.tfm").is_file()
    assert "good" in (folder / "report.csv").read_text()
    # The labels end on the fixed volume's grid.
    fixed = slicer.util.loadVolume(str(tmp_path / "fixed.nii.gz"))
    resampled = slicer.util.loadLabelVolume(str(tmp_path / "labels_in_fixed.nrrd"))
    assert slicer.util.arrayFromVolume(resampled).shape == slicer.util.arrayFromVolume(fixed).shape
    assert set(np.unique(slicer.util.arrayFromVolume(resampled))) == {0, 1}
    assert sameAsSeen(resampled, fixed) < 1e-3


def test_a_script_runs_without_the_application(tmp_path):
    """As the module's page says; it leaves with the script's own status."""
    script = tmp_path / "register.py"
    first = next(block for block in examples() if "moving_to_fixed.tfm" in block)
    quickly = first.replace("logic.register(moving, fixed,", "logic.register(moving, fixed, steps=1, polish=False,")
    assert quickly != first
    script.write_text(quickly)
    shutil.copy(TEMPLATE, tmp_path / "fixed.nii.gz")
    shutil.copy(BRAIN, tmp_path / "moving.nii.gz")
    command = [sys.executable, "-m", "SlicerHarness"]
    there = {**os.environ, "PYTHONPATH": str(REPOSITORY / "Testing")}
    done = subprocess.run([*command, str(script)], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "similarity" in done.stdout and (tmp_path / "moving_to_fixed.tfm").is_file()
    script.write_text("import slicer\nslicer.util.exit(3)\nprint('still here')\n")
    done = subprocess.run([*command, str(script)], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 3 and "still here" not in done.stdout


# Many


def test_register_many_nodes_and_files_with_a_report(logic, brains, tmp_path):
    moving, fixed = brains
    broken = slicer.util.addVolumeFromArray(np.full((20, 20, 20), 7.0), name="Constant")
    report, out = tmp_path / "report.csv", tmp_path / "out"
    out.mkdir()
    transforms = logic.registerMany(
        [moving, broken, BRAIN], fixed, outputFolder=out, keepVolumes=False, report=report, transform="rigid", **QUICK
    )
    assert transforms[0] is moving.GetParentTransformNode() and transforms[1] is None and transforms[2] is not None
    assert sameAsSeen(moving, fixed) < 1.5
    assert broken.GetParentTransformNode() is None
    assert not [n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if n.GetName() == BRAIN.name[:-7]]
    rows = list(csv.DictReader(report.open(encoding="utf-8")))
    assert [row["confidence"] == "failed" for row in rows] == [False, True, False]
    assert "constant" in rows[1]["why"] and rows[2]["moving_file"] == str(BRAIN)
    assert rows[0]["moving_file"] == ""  # its header was changed after it was read
    for row, transform in ((rows[0], transforms[0]), (rows[2], transforms[2])):
        matrix = np.array(row["matrix_moving_to_fixed_ras"].split(), float).reshape(4, 4)
        np.testing.assert_allclose(matrix, slicer.util.arrayFromTransformMatrix(transform), atol=1e-6)
        again = slicer.util.loadTransform(row["transform_file"])
        np.testing.assert_allclose(slicer.util.arrayFromTransformMatrix(again), matrix, atol=1e-5)
        assert float(row["similarity_after"]) > float(row["similarity_before"]) - 0.01
        assert row["confidence"] in ("good", "fair", "poor") and float(row["seconds"]) > 0


def test_register_many_says_why_nothing_worked(logic, brains):
    constant = slicer.util.addVolumeFromArray(np.full((20, 20, 20), 7.0), name="Constant")
    with pytest.raises(ValueError, match="No volume could be registered: .*constant"):
        logic.registerMany([constant], brains[1])
    with pytest.raises(ValueError, match="fixed volume"):
        logic.registerMany([brains[1]], brains[1])
    with pytest.raises(ValueError, match="None"):
        logic.registerMany([None], brains[1])


# The Batch tab


@pytest.fixture
def batch(panel, brains):
    panel._parameterNode.fixedVolume = brains[1]
    quick(panel)
    panel.ui.tabs.setCurrentIndex(1)
    yield panel
    panel.ui.tabs.setCurrentIndex(0)


def column(panel, number):
    table = panel.ui.batchTable
    return [table.item(row, number).text() for row in range(table.rowCount)]


def test_the_batch_tab_registers_scene_and_folder(batch, brains, tmp_path):
    ui, (moving, fixed) = batch.ui, brains
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    out.mkdir()
    shutil.copy(BRAIN, scans / "one.nii.gz")
    (scans / "broken.nii.gz").write_bytes(b"not an image")
    (scans / "notes.txt").write_text("not an image, either")
    assert not ui.batchRunButton.enabled and "Add" in ui.batchRunButton.toolTip
    ui.batchAddSceneButton.click()
    ui.batchFolderPath.currentPath = str(scans)
    ui.batchAddFolderButton.click()
    assert column(batch, 0) == ["Brain", "broken", "one"] and set(column(batch, 1)) == {"Waiting"}
    ui.batchOutputPath.currentPath = str(out)
    assert "Same brain" in ui.batchFixedLabel.text
    ui.batchRunButton.click()
    assert ui.batchRunButton.text == "Stop" and not ui.registerButton.enabled
    waitFor(batch)
    statuses = column(batch, 1)
    assert statuses == ["Done", "Failed", "Done"]
    assert "→" in column(batch, 2)[0] and column(batch, 3)[0]
    assert sameAsSeen(moving, fixed) < 1.5
    assert "2 registered, 1 failed" in ui.batchMessageLabel.text and "\nbroken: " in ui.batchMessageLabel.text
    assert "broken.nii.gz" in ui.batchTable.item(1, 1).toolTip()
    rows = list(csv.DictReader((out / "registrations.csv").open(encoding="utf-8")))
    assert [row["moving"] for row in rows] == ["Brain", "broken", "one"] and rows[1]["confidence"] == "failed"
    assert rows[2]["moving_file"] == str(scans / "one.nii.gz") and rows[2]["transform_file"].endswith(".tfm")
    assert (out / "review" / "index.html").is_file()
    assert len(list(out.glob("*.tfm"))) == 2
    assert ui.batchRunButton.text == "Register all"


def test_stopping_a_batch_keeps_what_is_done(batch, brains, monkeypatch, tmp_path):
    ui, (moving, fixed) = batch.ui, brains
    second = duplicate(moving, "Second")
    ui.batchAddSceneButton.click()
    ui.batchRunButton.click()
    waitFor(batch, lambda: column(batch, 0)[1] == "Second" and "/" in column(batch, 1)[1])
    ui.batchRunButton.click()
    assert column(batch, 1) == ["Done", "Stopped"]
    assert moving.GetParentTransformNode() is not None and second.GetParentTransformNode() is None
    path = tmp_path / "mine.csv"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *arguments: str(path))
    ui.batchReportButton.click()
    stopped = list(csv.DictReader(path.open(encoding="utf-8")))[1]
    assert (stopped["confidence"], stopped["why"]) == ("", "not registered (stopped)")
    ui.batchRunButton.click()  # goes on with what is left
    waitFor(batch)
    assert column(batch, 1) == ["Done", "Done"] and sameAsSeen(second, fixed) < 1.5


def test_leaving_the_module_keeps_the_batch(batch, loaded, brains):
    """In mid-run it goes on; afterwards the table still shows what was found."""
    batch.ui.batchAddSceneButton.click()
    batch.ui.batchRunButton.click()
    waitFor(batch, lambda: "/" in column(batch, 1)[0])
    loaded.exit()
    waitFor(batch)
    loaded.enter()
    assert column(batch, 1) == ["Done"] and "→" in column(batch, 2)[0]
    assert sameAsSeen(*brains) < 1.5


def test_closing_the_scene_in_mid_batch(batch, brains):
    batch.ui.batchAddSceneButton.click()
    batch.ui.batchRunButton.click()
    waitFor(batch, lambda: "/" in column(batch, 1)[0])
    slicer.mrmlScene.Clear()
    assert not batch.batchTab.running and batch.ui.batchTable.rowCount == 0


def test_batch_rows_can_be_removed_and_folders_can_be_wrong(batch, brains, tmp_path):
    ui = batch.ui
    ui.batchAddSceneButton.click()
    ui.batchAddSceneButton.click()
    assert ui.batchTable.rowCount == 1 and "no other volumes" in ui.batchMessageLabel.text
    ui.batchTable.selectRow(0)
    ui.batchRemoveButton.click()
    assert ui.batchTable.rowCount == 0
    ui.batchFolderPath.currentPath = str(tmp_path / "nowhere")
    ui.batchAddFolderButton.click()
    assert "no folder" in ui.batchMessageLabel.text
    ui.batchFolderPath.currentPath = str(tmp_path)
    ui.batchAddFolderButton.click()
    assert "no image files" in ui.batchMessageLabel.text


def test_the_script_for_the_application_itself_runs(loaded, scene, tmp_path, monkeypatch):
    """Testing/in_slicer.py, which a person with Slicer is asked to run, here with the stand-in application."""
    import in_slicer

    monkeypatch.chdir(tmp_path)
    report = in_slicer.main()
    assert report["failed"] == []
    assert report["cancel"] == {"returned": None, "nodes added": 0, "moving is where it was": True}
    assert report["register"]["segmentation follows"] and report["register"]["dice of the labels"] > 0.9
    batch = report["batch"]
    assert batch["registered"] == [True, False] and len(batch["table"]) == 3 and batch["nodes left"] == []
    assert "review/index.html" in batch["files"] and any(name.endswith(".tfm") for name in batch["files"])
    assert (tmp_path / "in_slicer_report.json").stat().st_size > 500
