"""The window without registering: what it says and when, what it remembers, what happens when things go wrong."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import vtk

from SlicerHarness.fixtures import (
    idle,
    qt,
    sceneState,
    slicer,
    turn,
    waitFor,
)


@pytest.fixture
def volumes(panel):
    """Two small volumes, chosen as moving and fixed."""
    data = np.random.default_rng(0).random((20, 22, 24)).astype(np.float32)
    moving, fixed = (slicer.util.addVolumeFromArray(data + i, name=name) for i, name in enumerate(("moving", "fixed")))
    panel._parameterNode.movingVolume, panel._parameterNode.fixedVolume = moving, fixed
    return moving, fixed


def tip(panel):
    """What the disabled Register button says."""
    assert not panel.ui.registerButton.enabled
    return panel.ui.registerButton.toolTip


# What is missing


def test_the_button_says_what_is_missing(panel):
    p = panel._parameterNode
    assert tip(panel) == "Select a moving and a fixed volume."
    p.movingVolume = slicer.util.addVolumeFromArray(np.zeros((20, 20, 20)), name="one")
    assert tip(panel) == "Select a fixed volume."
    p.fixedVolume = p.movingVolume
    assert "same" in tip(panel)
    p.fixedVolume = slicer.util.addVolumeFromArray(np.zeros((20, 20, 20)), name="two")
    assert panel.ui.registerButton.enabled


def test_each_bad_volume_gets_its_own_sentence(panel, volumes):
    p, (moving, fixed) = panel._parameterNode, volumes
    array = np.zeros((20, 20, 20, 3), np.uint8)
    color = slicer.util.addVolumeFromArray(array, name="color", nodeClassName="vtkMRMLVectorVolumeNode")
    labels = slicer.util.addVolumeFromArray(array[..., 0], name="labels", nodeClassName="vtkMRMLLabelMapVolumeNode")
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    weighted = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLDiffusionWeightedVolumeNode", "weighted")
    for node, expected in ((color, "vector"), (labels, "Also move"), (empty, "no image"), (weighted, "4D")):
        p.movingVolume = node
        assert expected in tip(panel) and node.GetName() in tip(panel)
        p.movingVolume, p.fixedVolume = moving, node
        assert expected in tip(panel)
        p.fixedVolume = fixed
    assert panel.ui.registerButton.enabled


def test_nonlinear_parents_are_refused_with_advice(panel, volumes):
    bspline = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
    bspline.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    volumes[0].SetAndObserveTransformNodeID(bspline.GetID())
    panel._parameterNode.Modified()
    assert "warp" in tip(panel) and "harden" in tip(panel)


def test_outputs_that_can_not_work_are_refused(panel, volumes):
    p, (moving, fixed) = panel._parameterNode, volumes
    p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "under fixed")
    fixed.SetAndObserveTransformNodeID(p.outputTransform.GetID())
    p.Modified()
    assert "also moves the fixed volume" in tip(panel)
    fixed.SetAndObserveTransformNodeID(None)
    p.outputTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    p.outputTransform.SetAndObserveTransformToParent(vtk.vtkThinPlateSplineTransform())
    p.Modified()
    assert "nonlinear" in tip(panel)
    p.outputTransform, p.outputVolume = None, fixed
    assert "overwrite" in tip(panel)
    p.outputVolume = None
    p.initialTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "initial")
    moving.SetAndObserveTransformNodeID(p.initialTransform.GetID())
    p.Modified()
    assert "already moves" in tip(panel)


BAD = {
    "constant": (lambda a: np.full_like(a, 3), "constant"),
    "not a number": (lambda a: np.full_like(a, np.nan), "NaN"),
    "small": (lambda a: a[:2], "voxels"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("role", ["moving", "fixed"])
def test_what_the_core_refuses_is_shown_and_changes_nothing(panel, volumes, kind, role):
    change, expected = BAD[kind]
    node = volumes[role == "fixed"]
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(change(slicer.util.arrayFromVolume(node))))
    before = sceneState()
    panel.ui.registerButton.click()
    waitFor(panel)
    message = panel.ui.messageLabel.text
    assert expected in message and node.GetName() in message and message.count("\n") == 0
    assert not panel.ui.messageFrame.isHidden() and not panel.ui.detailsButton.isHidden()
    assert sceneState() == before


def test_a_flat_header_is_refused(panel, volumes):
    """A transform that squashes the volume flat."""
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(transform, np.diag([1.0, 1.0, 0.0, 1.0]))
    volumes[0].SetAndObserveTransformNodeID(transform.GetID())
    panel.ui.registerButton.click()
    waitFor(panel)
    assert "moving" in panel.ui.messageLabel.text


def test_a_model_without_the_modality(panel, volumes):
    panel._parameterNode.modelName = "no such model"
    panel.ui.registerButton.click()
    waitFor(panel)
    assert "no such model" in panel.ui.messageLabel.text


def test_an_empty_mask(panel, volumes):
    labels = slicer.util.addVolumeFromArray(
        np.zeros((20, 22, 24), np.uint8), name="nothing", nodeClassName="vtkMRMLLabelMapVolumeNode"
    )
    panel._parameterNode.movingMask = labels
    panel.ui.registerButton.click()
    waitFor(panel)
    assert panel.ui.messageLabel.text == "The mask “nothing” is empty."


# Failures


def failing(monkeypatch, error):
    """Let the run fail after two steps: what no test machine can be made to do for real."""
    from SpatialDiffusionRegistrationLib import engine

    def steps(*_arguments, **_options):
        for index in (1, 2):
            yield types.SimpleNamespace(index=index, count=9, stage="Diffusion", matrix=turn(index))
        raise error

    monkeypatch.setattr(engine, "steps", steps)


def test_out_of_gpu_memory_offers_the_cpu(panel, volumes, monkeypatch):
    from SpatialDiffusionRegistrationLib.parameters import Device

    class OutOfMemoryError(RuntimeError):  # torch's has this name
        pass

    before = sceneState()
    with monkeypatch.context() as patch:
        failing(patch, OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
        panel.ui.registerButton.click()
        waitFor(panel)
    assert "graphics card ran out of memory" in panel.ui.messageLabel.text
    assert sceneState() == before
    assert panel.ui.remedyButton.text == "Use the CPU" and not panel.ui.remedyButton.isHidden()
    panel.ui.remedyButton.click()
    assert panel._parameterNode.device == Device.CPU
    assert panel.registerTab.running and panel.ui.messageFrame.isHidden()
    panel.cancel()


def test_cuda_where_there_is_none_offers_the_cpu(panel, volumes):
    import torch
    from SpatialDiffusionRegistrationLib.parameters import Device

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    panel._parameterNode.device = Device.CUDA
    panel.ui.registerButton.click()
    waitFor(panel)
    assert "CUDA" in panel.ui.messageLabel.text and panel.ui.remedyButton.text == "Use the CPU"


def test_any_other_failure_is_one_sentence_with_details(panel, volumes, monkeypatch):
    failing(monkeypatch, RuntimeError("something odd\nwith a second line"))
    before = sceneState()
    shown = []
    monkeypatch.setattr(slicer.util, "errorDisplay", lambda text, **options: shown.append((text, options)))
    panel.ui.registerButton.click()
    waitFor(panel)
    assert panel.ui.messageLabel.text.endswith("something odd") and panel.ui.remedyButton.isHidden()
    panel.ui.detailsButton.click()
    assert "Traceback" in shown[0][1]["detailedText"] and "second line" in shown[0][1]["detailedText"]
    assert sceneState() == before


# PyTorch


def withTorch(monkeypatch, version):
    """Let the installed metadata say that torch has that version, or none."""
    import importlib.metadata

    real = importlib.metadata.version

    def fake(name):
        if name != "torch":
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)


def test_without_torch_one_line_and_a_button(panel, loaded, volumes, monkeypatch):
    assert panel.ui.setupFrame.isHidden()
    withTorch(monkeypatch, None)
    loaded.enter()
    assert not panel.ui.setupFrame.isHidden()
    assert "PyTorch" in panel.ui.setupLabel.text and panel.ui.setupButton.text == "Install PyTorch…"
    before = sceneState()
    panel.ui.registerButton.click()
    waitFor(panel)
    assert "PyTorch" in panel.ui.messageLabel.text and panel.ui.remedyButton.text == "Set up PyTorch…"
    assert sceneState() == before


def test_an_old_torch_is_named(panel, loaded, monkeypatch):
    withTorch(monkeypatch, "1.13.1+cu117")
    loaded.enter()
    assert "1.13.1+cu117" in panel.ui.setupLabel.text and "2.1 or newer" in panel.ui.setupLabel.text
    assert panel.ui.setupButton.text == "Update PyTorch…"


def test_a_broken_torch_is_told(panel, volumes, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # `import torch` raises
    panel.ui.registerButton.click()
    waitFor(panel)
    assert "does not load" in panel.ui.messageLabel.text and "PyTorch Utils" in panel.ui.messageLabel.text


def test_without_the_pytorch_extension_advice(panel, loaded, monkeypatch):
    withTorch(monkeypatch, None)
    loaded.enter()
    panel.ui.setupButton.click()
    assert "Extensions Manager" in panel.ui.setupLabel.text and not panel.ui.setupFrame.isHidden()


@pytest.mark.parametrize("agrees", [True, False])
def test_the_button_asks_and_installs_through_the_extension(panel, loaded, monkeypatch, agrees):
    asked = []

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation, torchVersionRequirement):
            asked.append((askConfirmation, torchVersionRequirement))
            if agrees:
                withTorch(monkeypatch, "2.7.0")
                return object()
            return None

    monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=PyTorchUtilsLogic))
    withTorch(monkeypatch, None)
    loaded.enter()
    panel.ui.setupButton.click()
    assert asked == [(True, ">=2.1")]
    assert not panel.ui.setupFrame.isHidden()
    assert ("Restart Slicer" in panel.ui.setupLabel.text) == agrees
    restarted = []
    monkeypatch.setattr(slicer.util, "restart", lambda: restarted.append(True))
    if agrees:
        assert panel.ui.setupButton.text == "Restart Slicer"
        panel.ui.setupButton.click()
        panel.torchSetup._restart = False  # as in a new session
    else:
        assert panel.ui.setupButton.text == "Install PyTorch…"
    assert bool(restarted) == agrees


def test_other_requirements_are_asked_for_through_slicer_packaging(monkeypatch, tmp_path):
    from SpatialDiffusionRegistrationLib import torchsetup
    from SpatialDiffusionRegistrationLib.problem import Problem

    requirements = tmp_path / "requirements.txt"
    requirements.write_text("numpy>=1.20\n# nothing\nno-such-package>=1.0\n")
    assert torchsetup.missingRequirements(requirements) == ["no-such-package>=1.0"]
    asked = []
    monkeypatch.setitem(
        sys.modules,
        "slicer.packaging",
        types.SimpleNamespace(pip_ensure=lambda names, requester: asked.append((names, requester))),
    )
    torchsetup.ensureRequirements(requirements)
    assert asked == [(["no-such-package>=1.0"], "Spatial Diffusion Registration")]

    monkeypatch.setitem(sys.modules, "slicer.packaging", None)  # Slicer before 5.11
    installed = []
    monkeypatch.setattr(slicer.util, "pip_install", installed.append)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True)
    torchsetup.ensureRequirements(requirements)
    assert installed == ["no-such-package>=1.0"]
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: False)
    with pytest.raises(Problem, match="no-such-package"):
        torchsetup.ensureRequirements(requirements)
    assert len(installed) == 1


def test_the_modules_own_requirements_come_with_slicer(loaded):
    from SpatialDiffusionRegistrationLib import torchsetup

    assert torchsetup.missingRequirements(loaded.instance.resourcePath("requirements.txt")) == []


# What the window remembers


def test_widgets_and_parameters_follow_each_other(panel, volumes):
    from SpatialDiffusionRegistrationLib.parameters import Device, Polish, Sampler, TransformType

    p, ui = panel._parameterNode, panel.ui
    for combo, name, values in (
        (ui.transformCombo, "transformType", TransformType),
        (ui.samplerCombo, "sampler", Sampler),
        (ui.polishCombo, "polish", Polish),
        (ui.deviceCombo, "device", Device),
    ):
        for index, value in enumerate(values):
            combo.setCurrentIndex(index)
            assert getattr(p, name) == value
            assert combo.currentText == value.label()
        setattr(p, name, next(iter(values)))
        assert combo.currentIndex == 0
    for spin, name in ((ui.stepsSpin, "steps"), (ui.threadsSpin, "threads"), (ui.seedSpin, "seed")):
        spin.setValue(7)
        assert getattr(p, name) == 7
        setattr(p, name, 0)
        assert spin.value == 0
    ui.livePreviewBox.setChecked(False)
    ui.searchBox.setChecked(False)
    assert p.livePreview is False and p.search is False

    ui.movingModalityCombo.setCurrentIndex(ui.movingModalityCombo.findData("t1-brain"))
    ui.fixedModalityCombo.setCurrentIndex(ui.fixedModalityCombo.findData("ct-head-neck"))
    assert (p.movingModality, p.fixedModality) == ("t1-brain", "ct-head-neck")
    p.fixedModality = ""
    assert ui.fixedModalityCombo.currentText == "Same as the moving volume"
    p.modelName = "/elsewhere/mine.safetensors"
    assert ui.modelCombo.currentText == "/elsewhere/mine.safetensors"
    ui.movingSelector.setCurrentNode(volumes[1])
    assert p.movingVolume is volumes[1]


def test_values_are_checked(panel):
    p = panel._parameterNode
    for name, value, error in (
        ("steps", -1, ValueError),
        ("steps", "many", Exception),
        ("livePreview", 3, TypeError),
        ("transformType", "affine", TypeError),
        ("movingVolume", 3, Exception),
    ):
        with pytest.raises(error):
            setattr(p, name, value)
    assert p.steps == 0 and p.livePreview is True


def test_settings_reach_the_core(panel, volumes):
    from SpatialDiffusionRegistrationLib import parameters

    p = panel._parameterNode
    options = parameters.engine.core().RegistrationOptions
    assert parameters.settings(p).checked() == options() and parameters.settings(p).threads is None
    p.movingModality, p.fixedModality, p.polish = "t1-brain", "any", parameters.Polish.OFF
    p.steps, p.threads, p.seed, p.modelName, p.search = 5, 2, 3, "mine", False
    p.sampler, p.device, p.transformType = (
        parameters.Sampler.FAST,
        parameters.Device.CPU,
        parameters.TransformType.RIGID,
    )
    assert parameters.settings(p).threads == 2 and parameters.settings(p).checked() == options(
        modality="t1-brain",
        fixed_modality="any",
        transform="rigid",
        model="mine",
        sampler="fast",
        steps=5,
        polish=False,
        device="cpu",
        seed=3,
        search=False,
    )
    p.sampler = parameters.Sampler.REFERENCE  # which visits every timestep: said when it is to start, not before
    with pytest.raises(ValueError, match="leave the number of steps out"):
        parameters.settings(p).checked()


def test_a_saved_scene_brings_the_choices_back(panel, volumes, tmp_path):
    from SpatialDiffusionRegistrationLib import parameters

    p = panel._parameterNode
    points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "model")
    assert model is not points
    idle()
    panel.ui.alsoMoveList.item([panel.ui.alsoMoveList.item(i).text() for i in range(2)].index("points")).setCheckState(
        qt.Qt.Checked
    )
    assert parameters.nodeList(p, parameters.ALSO_MOVE_ROLE) == [points]
    p.movingModality, p.transformType, p.device = "t1-brain", parameters.TransformType.RIGID, parameters.Device.CPU
    p.steps, p.seed, p.livePreview, p.modelName = 11, 5, False, "some model"
    p.initialTransform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "initial")
    parameters.setBatchFiles(p, ["/data/a.nii.gz", "/data/b.nrrd"])
    for node in (*volumes, points, p.initialTransform):
        ending = {"vtkMRMLMarkupsFiducialNode": ".mrk.json", "vtkMRMLLinearTransformNode": ".h5"}.get(
            node.GetClassName(), ".nrrd"
        )
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(tmp_path / (node.GetName() + ending)))
        assert node.GetStorageNode().WriteData(node)
    slicer.mrmlScene.SetRootDirectory(str(tmp_path))
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear()
    assert panel._parameterNode.steps == 0 and panel._parameterNode.movingVolume is None
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    slicer.mrmlScene.Import()
    p = panel._parameterNode
    assert (p.movingVolume.GetName(), p.fixedVolume.GetName()) == ("moving", "fixed")
    assert (p.movingModality, p.transformType, p.device) == (
        "t1-brain",
        parameters.TransformType.RIGID,
        parameters.Device.CPU,
    )
    assert (p.steps, p.seed, p.livePreview, p.modelName) == (11, 5, False, "some model")
    assert p.initialTransform.GetName() == "initial"
    assert [n.GetName() for n in parameters.nodeList(p, parameters.ALSO_MOVE_ROLE)] == ["points"]
    assert [item.path for item in panel.batchTab.items] == ["/data/a.nii.gz", "/data/b.nrrd"]
    assert panel.ui.stepsSpin.value == 11 and panel.ui.movingModalityCombo.currentText == "T1 brain MRI"
    checked = [
        panel.ui.alsoMoveList.item(i).text()
        for i in range(panel.ui.alsoMoveList.count)
        if panel.ui.alsoMoveList.item(i).checkState() == qt.Qt.Checked
    ]
    assert checked == ["points"]


def test_the_list_of_what_moves_along_follows_the_scene(panel, volumes):
    widget = panel.ui.alsoMoveList

    def names():
        return [widget.item(i).text() for i in range(widget.count)]

    assert names() == ["Nothing else in the scene to move yet"]
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsLineNode", "line")
    slicer.util.addVolumeFromArray(np.zeros((4, 4, 4)), name="other volume")
    idle()
    assert names() == ["segmentation", "line", "other volume"]
    slicer.mrmlScene.RemoveNode(segmentation)
    idle()
    assert names() == ["line", "other volume"]


def test_the_ui_file_names_only_parameters_that_exist(panel):
    from SpatialDiffusionRegistrationLib.parameters import SpatialDiffusionRegistrationParameterNode

    known = set(SpatialDiffusionRegistrationParameterNode.allParameters)
    named = {widget.property("SlicerParameterName") for widget in vars(panel.ui).values()} - {None, ""}
    assert named and named <= known


def test_every_control_has_a_tooltip(panel):
    kinds = (
        "QComboBox",
        "QPushButton",
        "QSpinBox",
        "QCheckBox",
        "QSlider",
        "QToolButton",
        "qMRMLNodeComboBox",
        "QListWidget",
        "ctkPathLineEdit",
    )
    bare = [
        name
        for name, widget in vars(panel.ui).items()
        if type(widget).__name__ in kinds and not widget.toolTip and not name.startswith("qt_")
    ]
    assert not bare
