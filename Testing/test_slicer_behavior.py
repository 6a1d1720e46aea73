"""How the window behaves: it lives while it computes, lets go of what is gone, keeps up with large scenes."""

from __future__ import annotations

import gc
import sys
import time
import types
import weakref

import numpy as np
import pytest
import vtk

from SlicerHarness.fixtures import (
    idle,
    qt,
    savedScene,
    scripted,
    slicer,
    smallVolume,
    untilStep,
    waitFor,
)


@pytest.fixture
def window(panel, monkeypatch):
    panel.calls = scripted(monkeypatch, panel)
    panel.A, panel.F = smallVolume("A", 1), smallVolume("F", 2)
    panel._parameterNode.movingVolume, panel._parameterNode.fixedVolume = panel.A, panel.F
    idle()
    return panel


def slowly(monkeypatch, window, during):
    """Let the third step beat a while before it comes, with `during()` called as an event of the window meanwhile."""
    engine = window.registerTab.start.__globals__["Task"].run.__globals__["engine"]
    scriptedSteps = engine.steps

    def steps(*arguments, beat=None, **options):
        for step in scriptedSteps(*arguments, **options):
            if step.index == 3:
                qt.QTimer.singleShot(0, during)
                for _ in range(100):
                    time.sleep(0.01)
                    beat()
            yield step

    monkeypatch.setattr(engine, "steps", steps)


# The window lives inside a step


def test_cancel_is_heard_inside_a_step(window, monkeypatch):
    before = savedScene()
    heard = []

    def cancel():
        heard.append(window.ui.progressBar.value)
        window.ui.registerButton.click()
        heard.append((window.registerTab.running, window.A.GetParentTransformNode()))

    slowly(monkeypatch, window, cancel)
    window.ui.registerButton.click()
    waitFor(window, lambda: heard)
    idle()
    assert heard == [2, (False, None)]  # at once, before the step has come
    assert savedScene() == before and window.ui.registerButton.text == "Register"
    monkeypatch.undo()


@pytest.mark.parametrize("what", ["close", "import", "delete", "reload"])
def test_the_scene_may_change_inside_a_step(window, loaded, monkeypatch, what, tmp_path):
    other = slicer.vtkMRMLScene()
    other.SetURL(str(tmp_path / "empty.mrml"))
    assert other.Commit()
    slicer.mrmlScene.SetURL(str(tmp_path / "empty.mrml"))
    done = []

    def change():
        {
            "close": slicer.mrmlScene.Clear,
            "import": slicer.mrmlScene.Import,
            "delete": lambda: slicer.mrmlScene.RemoveNode(window.F),
            "reload": window.cleanup,
        }[what]()
        done.append(True)

    slowly(monkeypatch, window, change)
    window.ui.registerButton.click()
    waitFor(window, lambda: done)
    idle()
    assert not window.registerTab.running
    if what != "close":
        assert window.A.GetParentTransformNode() is None
    transforms = [node for node in slicer.util.getNodesByClass("vtkMRMLTransformNode") if not node.GetHideFromEditors()]
    assert transforms == []
    if what == "reload":
        window.onReload()


def test_a_second_run_waits_until_the_first_has_left_its_step(window, monkeypatch):
    """Cancel and Register again, both inside one step."""
    pressed = []

    def again():
        window.ui.registerButton.click()
        monkeypatch.undo()
        scripted(monkeypatch, window)
        window.ui.registerButton.click()
        pressed.append(window.registerTab.running)

    slowly(monkeypatch, window, again)
    window.ui.registerButton.click()
    waitFor(window, lambda: pressed)
    waitFor(window)
    assert pressed == [True]
    np.testing.assert_allclose(
        slicer.util.arrayFromTransformMatrix(window.A.GetParentTransformNode())[:3, 3], (10, 20, 30)
    )


def test_the_search_of_a_real_registration_lets_the_window_live(panel, monkeypatch):
    """With the real core: the window's events are handled many times before the first step has come."""
    moving, fixed = smallVolume("A", 1, (40, 44, 48)), smallVolume("F", 2, (40, 44, 48))
    panel._parameterNode.movingVolume, panel._parameterNode.fixedVolume = moving, fixed
    from SpatialDiffusionRegistrationLib import runner

    monkeypatch.setattr(runner, "BEAT_SECONDS", 0.0)
    ticks = []
    timer = qt.QTimer()
    timer.setInterval(1)
    timer.connect("timeout()", lambda: runner.Runner._stepping is not None and ticks.append(panel.ui.progressBar.value))
    timer.start()
    panel.ui.registerButton.click()
    waitFor(panel, lambda: panel.ui.progressBar.maximum > 0)
    timer.stop()
    assert sum(value < 1 for value in ticks) >= 6  # inside the first step, the search
    panel.cancel()


def test_reading_and_resampling_are_done_under_a_wait_cursor(window, monkeypatch):
    from SpatialDiffusionRegistrationLib import resampling
    from SpatialDiffusionRegistrationLib import scene as sceneLib

    depth = []

    def noting(call):
        def note(*arguments, **options):
            depth.append(qt.QApplication.overrideCursor() is not None)
            return call(*arguments, **options)

        return note

    for module, name in ((resampling, "onGridOf"), (sceneLib, "coreVolume")):
        monkeypatch.setattr(module, name, noting(getattr(module, name)))
    window._parameterNode.outputVolume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Resampled")
    window.ui.registerButton.click()
    waitFor(window)
    assert len(depth) == 3 and all(depth)
    assert qt.QApplication.overrideCursor() is None


# Failures


def test_an_exception_in_a_callback_ends_the_run_and_says_so(window, monkeypatch):
    before = savedScene()

    def onStep(step):
        if step.index == 3:
            raise KeyError("in the window itself")

    window.ui.registerButton.click()
    window.registerTab.runner._onStep = onStep
    waitFor(window)
    assert "in the window itself" in window.ui.messageLabel.text and savedScene() == before
    assert window.ui.registerButton.text == "Register" and window.ui.inputsSection.enabled


@pytest.mark.parametrize("what", ["no segments", "nothing drawn", "outside"])
def test_an_empty_segmentation_gets_a_sentence(window, what):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Bones")
    if what == "nothing drawn":
        node.GetSegmentation().AddEmptySegment("a", "a")
    elif what == "outside":
        sphere = vtk.vtkSphereSource()
        sphere.SetCenter(500, 500, 500)
        sphere.SetRadius(20)
        sphere.Update()
        node.GetSegmentation().SetSourceRepresentationName("Closed surface")
        node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", [1, 0, 0])
    window._parameterNode.fixedMask = node
    before = savedScene()
    if window.ui.registerButton.enabled:
        window.ui.registerButton.click()
        waitFor(window)
        said = window.ui.messageLabel.text
    else:
        said = window.ui.registerButton.toolTip
    assert "Bones" in said and said.count(".") == 1 and savedScene() == before
    assert ("no segments" in said) == (what == "no segments")


def test_masks_leave_no_node_and_no_representation_behind(window):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Surface")
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(12, 11, 10)
    sphere.SetRadius(6)
    sphere.SetThetaResolution(40)
    sphere.SetPhiResolution(40)
    sphere.Update()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", [1, 0, 0])
    window._parameterNode.movingMask = node
    before = savedScene()
    window.ui.registerButton.click()
    untilStep(window)
    window.ui.registerButton.click()
    assert savedScene() == before
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")
    volume = 4 / 3 * np.pi * 6**3
    assert window.calls[0].movingMask.data.sum() == pytest.approx(volume, rel=0.05)


# Letting go


def test_finished_runs_are_freed(window):
    window.ui.registerButton.click()
    runner, task = weakref.ref(window.registerTab.runner), weakref.ref(window.registerTab.task)
    waitFor(window)
    window.calls.clear()
    idle()
    gc.collect()
    assert runner() is None and task() is None


@pytest.mark.parametrize("how", ["done", "cancelled", "reviewed", "batch"])
def test_deleted_volumes_are_freed(window, how):
    """Gigabytes: nothing of the window may keep a volume that has left the scene."""
    if how == "batch":
        window.ui.batchAddSceneButton.click()
        window.ui.batchRunButton.click()
        waitFor(window)
    else:
        window.ui.registerButton.click()
        if how == "cancelled":
            untilStep(window)
            window.ui.registerButton.click()
        waitFor(window)
        if how == "reviewed":
            for box in (window.ui.colorBox, window.ui.beforeButton, window.ui.checkerboardBox):
                box.click()
    gone = []
    window.A.AddObserver(vtk.vtkCommand.DeleteEvent, lambda *_: gone.append(True))
    window.calls.clear()
    slicer.mrmlScene.RemoveNode(window.A)
    del window.A
    idle()
    gc.collect()
    idle()
    assert gone == [True]


def test_memory_of_the_graphics_card_is_given_back(panel, monkeypatch):
    """After a run and after a failure; a stand-in for torch, as no test machine must have a card."""
    from SpatialDiffusionRegistrationLib import engine

    given = []
    torch = types.SimpleNamespace(
        get_num_threads=lambda: 1,
        set_num_threads=lambda n: None,
        cuda=types.SimpleNamespace(is_available=lambda: True, empty_cache=lambda: given.append(True)),
    )
    monkeypatch.setattr(engine, "importTorch", lambda: torch)

    def registration_steps(*_arguments, **options):
        yield types.SimpleNamespace(index=1, count=2, stage="", matrix=np.eye(4))
        if options.get("seed"):
            raise RuntimeError

    monkeypatch.setattr(engine.core(), "registration_steps", registration_steps)
    assert len(list(engine.steps(None, None, engine.Settings()))) == 1 and len(given) == 1
    with pytest.raises(RuntimeError):
        list(engine.steps(None, None, engine.Settings({"seed": 1})))
    assert len(given) == 2
    steps = engine.steps(None, None, engine.Settings())
    next(steps)
    steps.close()
    assert len(given) == 3


# Large scenes, names


def test_a_thousand_nodes_are_one_update(window, monkeypatch):
    updates = []
    original = window.registerTab._alsoMove.update
    monkeypatch.setattr(window.registerTab._alsoMove, "update", lambda p: (updates.append(1), original(p)))
    for number in range(1000):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", f"m{number}")
    assert updates == []
    idle()
    assert len(updates) == 1 and window.ui.alsoMoveList.count == 1000
    for node in slicer.util.getNodesByClass("vtkMRMLModelNode"):
        if node.GetName().startswith("m"):
            slicer.mrmlScene.RemoveNode(node)
    idle()
    assert len(updates) == 2


def test_new_names_are_shown_wherever_a_node_is_named(window):
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Old")
    idle()
    model.SetName("New")
    idle()
    assert window.ui.alsoMoveList.item(0).text() == "New"
    window._parameterNode.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "T")
    assert "“T”" in window.ui.outputHintLabel.text
    window._parameterNode.outputTransform.SetName("U")
    idle()
    assert "“U”" in window.ui.outputHintLabel.text


def test_a_message_goes_with_the_pair_that_it_was_about(window):
    window.registerTab.tell(types.SimpleNamespace(sentence="A is bad.", details="", remedy=""))
    assert not window.ui.messageFrame.isHidden()
    window._parameterNode.movingVolume = smallVolume("B", 3)
    assert window.ui.messageFrame.isHidden()


def test_a_deleted_volume_is_named_until_another_pair_is_chosen(window):
    window.ui.registerButton.click()
    untilStep(window)
    slicer.mrmlScene.RemoveNode(window.A)
    idle()
    assert "“A” was removed" in window.ui.messageLabel.text and not window.ui.messageFrame.isHidden()


# Words


def test_the_disabled_button_says_why_on_itself(panel):
    assert panel.ui.registerButton.text == "Select a moving and a fixed volume"
    assert panel.ui.reasonLabel.isHidden()  # the button says all of it
    labels = smallVolume("labels", className="vtkMRMLLabelMapVolumeNode")
    panel._parameterNode.movingVolume = labels
    assert panel.ui.registerButton.text == "“labels” is a label volume"
    assert panel.ui.reasonLabel.text == panel.ui.registerButton.toolTip and not panel.ui.reasonLabel.isHidden()
    assert "Also move" in panel.ui.reasonLabel.text
    panel._parameterNode.movingVolume, panel._parameterNode.fixedVolume = smallVolume("A", 1), smallVolume("F", 2)
    assert panel.ui.registerButton.text == "Register" and panel.ui.reasonLabel.isHidden()


def test_each_thing_has_a_name_of_its_own(panel):
    texts = [
        widget.text
        for name, widget in vars(panel.ui).items()
        if type(widget).__name__ == "QLabel" and str(widget.text).endswith(":")
    ]
    assert len(texts) > 15 and len(set(texts)) == len(texts)


def test_an_old_slicer_is_told(loaded):
    tooOld = loaded.pymodule.tooOld
    assert tooOld(5, 8) == tooOld(5, 13) == tooOld(6, 0) == ""
    assert "5.8 or newer" in tooOld(5, 6) and "(5.6)" in tooOld(5, 6)


def test_installing_pytorch_shows_that_it_works_and_asks_for_a_restart(panel, loaded, monkeypatch):
    import importlib.metadata

    real, version, seen = importlib.metadata.version, [], []

    def versionOf(name):
        if name != "torch":
            return real(name)
        if not version:
            raise importlib.metadata.PackageNotFoundError(name)
        return version[0]

    class PyTorchUtilsLogic:
        def installTorch(self, **_options):
            seen.append((panel.ui.setupLabel.text, qt.QApplication.overrideCursor() is not None))
            version.append("2.7.0")
            return object()

    monkeypatch.setattr(importlib.metadata, "version", versionOf)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=PyTorchUtilsLogic))
    restarts = []
    monkeypatch.setattr(slicer.util, "restart", lambda: restarts.append(True))
    loaded.enter()
    panel.ui.setupButton.click()
    assert "being installed" in seen[0][0] and "some minutes" in seen[0][0] and seen[0][1]
    assert "2.7.0" in panel.ui.setupLabel.text and panel.ui.setupButton.text == "Restart Slicer"
    assert qt.QApplication.overrideCursor() is None
    panel.ui.setupButton.click()
    assert restarts == [True]
    panel.torchSetup._restart = False  # as in a new session


def test_the_review_is_of_the_volumes_that_are_selected_not_of_an_older_result(window):
    window.ui.registerButton.click()
    waitFor(window)
    other = smallVolume("Other", 9)
    window._parameterNode.movingVolume = other
    idle()
    assert "other volumes are selected" in window.ui.stateValue.text
    assert not window.ui.beforeButton.enabled  # nothing is known of where this one was
    slicer.util.setSliceViewerLayers(background=window.F, foreground=None)
    window.ui.fadeSlider.setValue(80)
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetForegroundVolumeID() == other.GetID()
