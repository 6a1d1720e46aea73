"""The button that adapts a model to the folder of the batch: what it needs, its process, and what comes of it."""

from __future__ import annotations

import importlib.machinery
import os
import time
from pathlib import Path

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    BRAIN,
    idle,
    savedScene,
    slicer,
    waitFor,
)

#: A program in place of the training package's: says what it was told, waits to be stopped if asked, and ends as told.
PROGRAM = """
import pathlib, sys, time
scans, _, folder = sys.argv[1:4]
print("5 scans of 5 people in", scans, flush=True)
print(sys.argv[4:], flush=True)
{more}
pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
pathlib.Path(folder, "report.html").write_text("It helps.")
print("It helps: the median falls from 3 to 1 mm.")
print("Installed as scans.safetensors.")
print(pathlib.Path(folder, "report.html"))
"""


@pytest.fixture
def window(panel, monkeypatch, tmp_path):
    """A folder of scans and an output folder are chosen; `window.opened` is what would have been opened."""
    from SpatialDiffusionRegistrationLib import adapt_frame, engine

    panel.opened, panel.asked, panel.answer = [], [], True
    monkeypatch.setattr(adapt_frame, "openFile", lambda path: panel.opened.append(path) or True)
    monkeypatch.setattr(
        slicer.util, "confirmOkCancelDisplay", lambda text, **_options: panel.asked.append(text) or panel.answer
    )
    panel.scans, panel.out = tmp_path / "scans", tmp_path / "out"
    panel.scans.mkdir()
    panel.out.mkdir()
    panel.ui.batchFolderPath.currentPath = str(panel.scans)
    panel.ui.batchOutputPath.currentPath = str(panel.out)

    def program(more=""):
        arguments = engine.adaptCommand("S", "F", 30)[3:]
        assert arguments[:3] == ["S", "-o", "F"]
        monkeypatch.setattr(
            engine,
            "adaptCommand",
            lambda scans, folder, minutes: ["-c", PROGRAM.format(more=more), scans, "-o", folder, *arguments[3:]],
        )

    panel.program = program
    yield panel
    panel.batchTab.adapt.cleanup()
    panel.ui.batchFolderPath.currentPath = ""


def untilEnded(window, seconds=60):
    waitFor(window, lambda: not window.batchTab.adapt.running, seconds)


def test_what_is_missing_is_said_on_the_button(window, monkeypatch, tmp_path):
    pytest.importorskip("lightning_fabric", reason="the training package's needs")
    from SpatialDiffusionCore.cli import adapt

    button = window.ui.batchAdaptButton
    assert button.enabled and "only if it helps" in button.toolTip
    window.ui.batchOutputPath.currentPath = ""
    assert not button.enabled and "output folder" in button.toolTip
    window.ui.batchOutputPath.currentPath = str(tmp_path / "nowhere")
    assert not button.enabled and "nowhere" in button.toolTip
    window.ui.batchOutputPath.currentPath = str(window.out)
    window.ui.batchFolderPath.currentPath = str(tmp_path / "no scans")
    assert not button.enabled and "no scans" in button.toolTip
    window.ui.batchFolderPath.currentPath = ""
    assert not button.enabled and "folder of scans" in button.toolTip
    window.ui.batchFolderPath.currentPath = str(window.scans)
    monkeypatch.setattr(adapt, "missing", lambda: ["ema_pytorch"])
    window.batchTab.updateButtons()
    assert not button.enabled and "ema_pytorch missing" in button.toolTip
    assert "slicer.util.pip_install('spatial-diffusion-registration[training]')" in button.toolTip


def test_without_pytorch_that_comes_first(window, monkeypatch):
    from SpatialDiffusionRegistrationLib import torchsetup

    monkeypatch.setattr(torchsetup, "state", lambda: torchsetup.State("", "PyTorch is not there.", "Install"))
    window.batchTab.updateButtons()
    assert not window.ui.batchAdaptButton.enabled and window.ui.batchAdaptButton.toolTip == "PyTorch is not there."


def test_the_training_package_is_found_in_a_checkout_or_where_it_is_installed(window, monkeypatch):
    """In a checkout it stands beside the core, though no path leads there."""
    from SpatialDiffusionRegistrationLib import engine

    from SpatialDiffusionCore.cli import adapt

    there = importlib.machinery.ModuleSpec("found", None)
    monkeypatch.setattr(adapt, "find_spec", lambda name: None if name == adapt.TRAINING else there)
    assert engine.missingForTraining() == [] and len(engine.trainingPaths()) == 2
    monkeypatch.setattr(engine, "trainingPaths", lambda: ["core only"])
    assert engine.missingForTraining() == [adapt.TRAINING]


def test_it_asks_first_and_does_nothing_if_the_answer_is_no(window):
    window.answer = False
    window.ui.batchAdaptButton.click()
    assert not window.batchTab.adapt.running and not list(window.out.iterdir())
    assert len(window.asked) == 1
    for part in ("30 minutes", str(window.scans), "only if", "report.html"):
        assert part in window.asked[0]


def test_it_runs_in_the_background_and_opens_the_report(window):
    window.program("time.sleep(1)")
    before = savedScene()
    window.ui.batchAdaptButton.click()
    assert window.batchTab.adapt.running and window.ui.batchAdaptButton.text == "Stop adapting"
    assert not window.ui.batchAdaptProgressBar.isHidden()
    waitFor(window, lambda: "--threads" in window.ui.batchAdaptLabel.text, 30)  # its last line
    assert "'--minutes', '30'" in window.ui.batchAdaptLabel.text
    untilEnded(window)
    report = window.out / "adapted-scans" / "report.html"
    assert window.opened == [str(report)] and window.ui.batchAdaptProgressBar.isHidden()
    said = window.ui.batchAdaptLabel.text
    assert said.startswith("It helps: the median falls from 3 to 1 mm. Installed as scans.safetensors.")
    assert str(report) in said and window.ui.batchAdaptButton.text == "Adapt a model to the folder…"
    assert savedScene() == before


def test_new_models_are_offered_afterwards(window, monkeypatch):
    from SpatialDiffusionRegistrationLib import engine

    window.program()
    known = engine.modalities
    monkeypatch.setattr(engine, "modalities", lambda: [*known(), engine.Choice("scans", "scans")])
    assert window.ui.movingModalityCombo.findData("scans") < 0
    window.ui.batchAdaptButton.click()
    untilEnded(window)
    assert window.ui.movingModalityCombo.findData("scans") >= 0
    window.registerTab.fillChoices()


def test_a_failure_gives_the_programs_own_sentence(window):
    window.program("sys.exit('spatial-diffusion-train: scans shows 2 people, too few.')")
    window.ui.batchAdaptButton.click()
    untilEnded(window)
    said = window.ui.batchAdaptLabel.text
    assert said.startswith("The model was not adapted: scans shows 2 people, too few.")
    assert str(window.out / "adapted-scans.log") in said and not window.opened
    assert window.ui.batchAdaptButton.enabled


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_stopping_ends_the_process_and_all_that_it_started(window, tmp_path):
    child = tmp_path / "child"
    window.program(
        "import subprocess\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=subprocess.DEVNULL)\n"
        f"pathlib.Path({str(child)!r}).write_text('started')\n"
        "time.sleep(60)"
    )
    window.ui.batchAdaptButton.click()
    waitFor(window, child.exists, 30)
    process = window.batchTab.adapt._adaptation._process
    window.ui.batchAdaptButton.click()
    assert window.ui.batchAdaptLabel.text == "Stopping…" and not window.ui.batchAdaptButton.enabled
    untilEnded(window)
    assert window.ui.batchAdaptLabel.text == "Stopped; the same button goes on from there." and not window.opened
    end = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not members(process.pid)


def members(group):
    """Processes of a group that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_closing_the_window_ends_the_process(window, loaded):
    window.program("time.sleep(60)")
    window.ui.batchAdaptButton.click()
    process = window.batchTab.adapt._adaptation._process
    window.batchTab.cleanup()
    process.wait(timeout=30)
    assert not window.batchTab.adapt.running


def test_registering_goes_on_meanwhile(window):
    window.program("time.sleep(2)")
    window.ui.batchAdaptButton.click()
    assert window.batchTab.adapt.running and window.registerTab._available
    slicer.mrmlScene.Clear()
    idle()
    assert window.batchTab.adapt.running  # it needs no scene
    untilEnded(window)
    assert window.opened


def test_the_real_program_adapts_to_a_folder(window, monkeypatch):
    """Five "people", a few seconds of training on a coarse grid."""
    pytest.importorskip("lightning_fabric", reason="the training package's needs")
    pytest.importorskip("ema_pytorch", reason="the training package's needs")
    from SpatialDiffusionRegistrationLib import engine

    from SpatialDiffusionCore.spatial import geometry, volume_file
    from SpatialDiffusionCore.spatial.volume import Volume

    scan = volume_file.load(BRAIN)
    for number in range(5):
        random = np.random.default_rng(number)
        header = geometry.about(geometry.rotation_about(random.normal(size=3), 0.1), scan.center()) @ scan.voxel_to_ras
        values = np.round(255 * (scan.data / scan.data.max()) ** random.uniform(0.8, 1.2)).astype(np.uint8)
        volume_file.save(Volume(values, header, "x"), window.scans / f"sub-{number:02d}_T1w.nii.gz")
    full = engine.adaptCommand
    small = ["data.size=[24]", "data.spacing=9.3", "optimization.batch=1", "run.validate_draws=1"]
    small += ["run.validate_every=100000", "run.picture_every=0"]
    options = ["--measure", "1", "--threads", "1", "--device", "cpu", "--no-install"]
    options += [part for each in small for part in ("--set", each)]
    monkeypatch.setattr(engine, "adaptCommand", lambda scans, folder, minutes: [*full(scans, folder, 0.03), *options])
    window.ui.batchAdaptButton.click()
    untilEnded(window, 600)
    folder = window.out / "adapted-scans"
    assert window.opened == [str(folder / "report.html")], window.ui.batchAdaptLabel.text
    assert (folder / "model.safetensors").is_file()
    assert "It helps" in window.ui.batchAdaptLabel.text or "It does not help" in window.ui.batchAdaptLabel.text
