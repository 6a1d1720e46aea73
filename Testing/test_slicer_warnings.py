"""What the core warns of stands in the Result section: headers, few slices; of nodes only what the scene knows."""

from __future__ import annotations

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    idle,
    slicer,
    smallVolume,
    waitFor,
)

nibabel = pytest.importorskip("nibabel", reason="it writes headers that contradict themselves")


def odd(path, codes=(1, 2), shape=(20, 22, 24)):
    """A NIfTI file whose qform and sform lie 10 mm apart (or, with the codes 0, do not count)."""
    data = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)
    image = nibabel.Nifti1Image(data, np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 10.0
    image.set_qform(np.eye(4), code=codes[0])
    image.set_sform(moved, code=codes[1])
    nibabel.save(image, path)
    return path


@pytest.fixture
def window(panel):
    """The real core, with settings that take no time."""
    from SpatialDiffusionRegistrationLib.parameters import Polish

    p = panel.p = panel._parameterNode
    p.movingModality, p.steps, p.polish, p.search = "any", 1, Polish.OFF, False
    return panel


def register(window, moving, fixed):
    window.p.movingVolume, window.p.fixedVolume = moving, fixed
    window.ui.registerButton.click()
    waitFor(window)
    return window.ui.warningsValue.text


def test_what_a_files_header_contradicts_is_said_in_the_panel(window, tmp_path):
    moving = slicer.util.loadVolume(str(odd(tmp_path / "odd.nii.gz")))
    said = register(window, moving, smallVolume("F", 3))
    assert "⚠ The qform and the sform of odd.nii.gz place it up to 10 mm apart; the qform is used" in said
    assert not window.ui.warningsValue.isHidden()


def test_of_both_volumes(window, tmp_path):
    moving = slicer.util.loadVolume(str(odd(tmp_path / "first.nii.gz")))
    fixed = slicer.util.loadVolume(str(odd(tmp_path / "second.nii", codes=(0, 0))))
    said = register(window, moving, fixed)
    assert "of first.nii.gz place it" in said
    assert "second.nii says neither where the volume lies nor which side is left" in said


def test_a_header_that_was_changed_in_the_scene_is_not_the_files_any_more(window, tmp_path):
    import vtk

    moving = slicer.util.loadVolume(str(odd(tmp_path / "odd.nii.gz")))
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 10.0)
    moving.SetIJKToRASMatrix(matrix)
    assert "odd.nii.gz" not in register(window, moving, smallVolume("F", 3))


def test_a_volume_without_a_file_has_no_header_to_speak_of(window, tmp_path):
    path = odd(tmp_path / "odd.nii.gz")
    moving = slicer.util.loadVolume(str(path))
    path.unlink()
    assert "odd" not in register(window, moving, smallVolume("F", 3))
    assert "header" not in register(window, smallVolume("A", 1), smallVolume("G", 4))


def test_few_slices_are_said_in_the_panel(window):
    said = register(window, smallVolume("Thin", 1, shape=(6, 40, 40)), smallVolume("F", 3))
    assert "⚠ Thin has 6 slices only" in said


def test_a_batch_tells_them_in_the_row_and_in_the_report(window, tmp_path):
    import csv

    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    out.mkdir()
    odd(scans / "odd.nii.gz")
    window.p.fixedVolume = smallVolume("F", 3)
    window.ui.batchFolderPath.currentPath = str(scans)
    window.ui.batchAddFolderButton.click()
    window.ui.batchOutputPath.currentPath = str(out)
    window.ui.batchRunButton.click()
    waitFor(window)
    assert "qform and the sform of odd.nii.gz" in window.ui.batchTable.item(0, 3).toolTip()
    with (out / "registrations.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    assert "qform and the sform of odd.nii.gz" in row["warnings"] and row["moving_file"] == str(scans / "odd.nii.gz")
    window.ui.batchFolderPath.currentPath = ""
    idle()
