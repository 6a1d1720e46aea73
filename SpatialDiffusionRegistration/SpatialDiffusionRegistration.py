"""Spatial Diffusion Registration: the Slicer module.

This file holds the four classes that Slicer looks for; the parts are in SpatialDiffusionRegistrationLib.  Nothing here
needs PyTorch until a registration starts.
"""
import os
import sys
import unittest

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import *  # noqa: F403
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin
from SpatialDiffusionRegistrationLib import batch as batchRuns
from SpatialDiffusionRegistrationLib import engine, scene, torchsetup
from SpatialDiffusionRegistrationLib.batch_tab import BatchTab
from SpatialDiffusionRegistrationLib.parameters import SpatialDiffusionRegistrationParameterNode
from SpatialDiffusionRegistrationLib.problem import Problem
from SpatialDiffusionRegistrationLib.register_tab import RegisterTab
from SpatialDiffusionRegistrationLib.sampledata import registerSampleData
from SpatialDiffusionRegistrationLib.task import Request, Task

#
# SpatialDiffusionRegistration
#


class SpatialDiffusionRegistration(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Spatial Diffusion Registration")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["Spatial Diffusion Registration contributors"]
        self.parent.helpText = _("""
Moves one volume onto another (rigid, similarity or affine) by a learned diffusion over spatial transforms, from any
starting pose, and says how sure it is. Select a moving and a fixed volume and press <i>Register</i>.
See the <a href="https://github.com/SpatialDiffusion/SlicerSpatialDiffusionRegistration#readme">documentation</a>.
""")
        self.parent.acknowledgementText = _("""
The method is spatial diffusion for affine image registration; see the documentation for how to cite it.
""")
        slicer.app.connect("startupCompleted()", registerSampleData)


#
# SpatialDiffusionRegistrationWidget
#


class SpatialDiffusionRegistrationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The window: life cycle and scene events; the tabs do the rest."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = self.registerTab = self.batchTab = None
        self._parameterNode = self._parameterNodeGuiTag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SpatialDiffusionRegistration.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = SpatialDiffusionRegistrationLogic()
        self.registerTab = RegisterTab(self.ui, self.onSetup, self._onRunningChanged)
        self.batchTab = BatchTab(self.ui, self._onRunningChanged)
        self.ui.setupButton.connect("clicked(bool)", self.onSetup)

        sceneEvents = slicer.mrmlScene
        self.addObserver(sceneEvents, sceneEvents.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(sceneEvents, sceneEvents.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(sceneEvents, sceneEvents.StartImportEvent, self.onSceneStartImport)
        self.addObserver(sceneEvents, sceneEvents.EndImportEvent, self.onSceneEndImport)
        self.addObserver(sceneEvents, sceneEvents.NodeAddedEvent, self.onNodesChanged)
        self.addObserver(sceneEvents, sceneEvents.NodeRemovedEvent, self.onNodesChanged)

        self.updateSetup()
        self.registerTab.fillChoices()
        self.initializeParameterNode()

    def cleanup(self):
        """The application closes, or the module is reloaded."""
        self.cancel()
        self.registerTab.review.leave()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self):
        self.updateSetup()
        self.registerTab.fillChoices()
        self.initializeParameterNode()

    def exit(self):
        """Another module is opened: a run goes on, but the views must not stay in a state of review."""
        self.registerTab.review.leave()
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._parameterNodeGuiTag = None
            if self.hasObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified):
                self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)

    def cancel(self):
        """Stop whatever runs, putting the scene back."""
        self.registerTab.cancel()
        self.batchTab.stop()

    # The scene

    def onSceneStartClose(self, caller=None, event=None):
        self.registerTab.abandon()
        self.batchTab.abandon()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller=None, event=None):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneStartImport(self, caller=None, event=None):
        self.cancel()
        self.registerTab.review.leave()

    def onSceneEndImport(self, caller=None, event=None):
        # The wrapper caches node references, which an imported scene has just replaced: wrap anew.
        self.setParameterNode(None)
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onNodesChanged(self, caller=None, event=None):
        if slicer.mrmlScene.IsClosing() or slicer.mrmlScene.IsImporting() or self._parameterNode is None:
            return
        self.registerTab.onNodeRemoved()
        self.batchTab.onNodeRemoved()
        if self.parent.isEntered and not self.registerTab.running:
            self.registerTab.update()

    # Parameters

    def initializeParameterNode(self):
        current = self._parameterNode
        if current is None or current.parameterNode.GetScene() is not slicer.mrmlScene:
            current = self.logic.getParameterNode()
        self.setParameterNode(current)

    def setParameterNode(self, parameterNode):
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            if self.hasObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified):
                self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self._parameterNode = parameterNode
        if parameterNode:
            self._parameterNodeGuiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self.registerTab.setParameters(parameterNode)
        self.batchTab.setParameters(parameterNode)

    def _onParametersModified(self, caller=None, event=None):
        self.registerTab.update()
        self.batchTab.update()

    def _onRunningChanged(self):
        if self.batchTab is not None:
            self.registerTab.setAvailable(not self.batchTab.running)
            self.batchTab.setAvailable(not self.registerTab.running)

    # PyTorch

    def updateSetup(self):
        """Say what is missing, from what is installed; nothing is imported."""
        state = torchsetup.state()
        self.ui.setupFrame.setVisible(not state.ready)
        self.ui.setupLabel.text = state.sentence
        self.ui.setupButton.text = state.action

    def onSetup(self, *_ignored):
        """Install or update PyTorch, after asking."""
        try:
            torchsetup.ensureRequirements(self.resourcePath("requirements.txt"))
            torchsetup.install()
        except Problem as problem:
            self.updateSetup()
            self.ui.setupLabel.text = str(problem)
            self.ui.setupButton.text = self.ui.setupButton.text or _("Set up PyTorch…")
            self.ui.setupFrame.setVisible(True)
            return
        except Exception as error:
            slicer.util.errorDisplay(_("PyTorch could not be installed: {reason}").format(reason=error))
        self.updateSetup()

    def onReload(self):
        """Developers: the parts are reloaded, too."""
        for name in [name for name in sys.modules if name.split(".")[0] == "SpatialDiffusionRegistrationLib"]:
            del sys.modules[name]
        super().onReload()


#
# SpatialDiffusionRegistrationLogic
#


class SpatialDiffusionRegistrationLogic(ScriptedLoadableModuleLogic):
    """Registration from scripts; no window is needed.

        logic = SpatialDiffusionRegistrationLogic()
        transform = logic.register(moving, fixed, modality="t1-brain")
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.result = None
        """What the last call of `register` found (SpatialDiffusionRegistrationLib.result.Result)."""

    def getParameterNode(self):
        return SpatialDiffusionRegistrationParameterNode(super().getParameterNode())

    def register(self, movingVolume, fixedVolume, modality="auto", *, movingModality=None, fixedModality=None,
                 transform="affine", outputTransform=None, outputVolume=None, alsoMove=(), initialTransform=None,
                 movingMask=None, fixedMask=None, model=None, sampler=None, steps=None, bidirectional=None,
                 polish=None, device="auto", threads=None, seed=0, search=True, progress=None):
        """Register and wait; return the transform node, with the moving volume under it.

        :param movingVolume, fixedVolume: scalar volume nodes, taken where they are seen, with the linear transforms
          they are under.
        :param modality: kind of both images ("t1-brain", "ct-head-neck", "any", ...); "auto" recognizes T1 brains and
          head-and-neck CTs. `movingModality` and `fixedModality` are for when they differ.
        :param transform: "rigid", "similarity" or "affine".
        :param outputTransform: linear transform node to fill; None makes a new one.
        :param outputVolume: scalar volume node that receives the moving volume resampled on the fixed one's grid.
        :param alsoMove: segmentations, models, markups and volumes that follow the moving volume.
        :param initialTransform: linear transform node from moving to fixed to begin with.
        :param movingMask, fixedMask: label volume or segmentation nodes; what is outside is ignored.
        :param model, sampler, steps, bidirectional, polish, device, seed, search: as in SpatialDiffusionCore.register;
          None leaves the choice to it.
        :param threads: processor threads that PyTorch may use.
        :param progress: called with every step (index, count, stage, matrix); if it returns False, the registration
          is cancelled, the scene is put back, and None is returned.
        :raises ValueError: if something given can not be used; one sentence. The scene is unchanged after any error.
        """
        settings = engine.Settings(
            movingModality=movingModality or modality, fixedModality=fixedModality or modality, transform=transform,
            model=model, sampler=sampler, steps=steps, bidirectional=bidirectional, polish=polish, device=device,
            threads=threads, seed=seed, search=search)
        task = Task(Request(movingVolume, fixedVolume, settings, outputTransform=outputTransform,
                            outputVolume=outputVolume, alsoMove=tuple(alsoMove), initialTransform=initialTransform,
                            movingMask=movingMask, fixedMask=fixedMask))
        run = task.run()
        for step in run:
            if progress is not None and progress(step) is False:
                run.close()
                return None
        self.result = task.result
        return task.transformNode

    def registerMany(self, movingVolumes, fixedVolume, modality="auto", *, movingModality=None, fixedModality=None,
                     transform="affine", model=None, sampler=None, steps=None, bidirectional=None, polish=None,
                     device="auto", threads=None, seed=0, search=True, outputFolder="", keepVolumes=True, report="",
                     progress=None):
        """Register many volumes to one, one after the other; return a transform node for each, None where it failed.

        :param movingVolumes: volume nodes, or paths of image files, or both.
        :param outputFolder: if given, every transform is written there (.tfm).
        :param keepVolumes: whether volumes read from files stay in the scene.
        :param report: path of a CSV report with similarities, confidence, warnings, errors and matrices.
        :param progress: called with (item, step); if it returns False, the rest is left out.
        :raises ValueError: if the call can not start, or if every volume failed (with the first one's sentence).
        """
        nodes = [m for m in movingVolumes if not isinstance(m, (str, os.PathLike))]
        if None in nodes:
            raise Problem(_("One of the moving volumes is None."))
        settings = engine.Settings(
            movingModality=movingModality or modality, fixedModality=fixedModality or modality, transform=transform,
            model=model, sampler=sampler, steps=steps, bidirectional=bidirectional, polish=polish, device=device,
            threads=threads, seed=seed, search=search)
        items = [batchRuns.Item(path=str(m)) if isinstance(m, (str, os.PathLike)) else batchRuns.Item(node=m)
                 for m in movingVolumes]
        many = batchRuns.Batch(items, fixedVolume, settings, outputFolder, keepVolumes)
        problem = many.problem()
        if problem:
            raise Problem(problem)
        run = many.run()
        for item, step in run:
            if progress is not None and progress(item, step) is False:
                run.close()
                break
        if report:
            batchRuns.writeReport(report, items)
        if all(item.status == batchRuns.FAILED for item in items):
            raise Problem(_("No volume could be registered: {reason}").format(reason=items[0].error))
        return [item.transformNode for item in items]


#
# SpatialDiffusionRegistrationTest
#


class SpatialDiffusionRegistrationTest(ScriptedLoadableModuleTest):
    """Each test stands alone, needs no network, and takes seconds; those that register skip without PyTorch."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        """Reload and Test: run all, report what is skipped."""
        for name in sorted(name for name in dir(self) if name.startswith("test_")):
            self.setUp()
            try:
                getattr(self, name)()
            except unittest.SkipTest as skipped:
                self.delayDisplay(f"{name}: skipped, {skipped}")
            else:
                self.delayDisplay(f"{name}: passed")
            finally:
                self.tearDown()

    def tearDown(self):
        slicer.mrmlScene.Clear()

    # Helpers

    def _volume(self, name, matrix=None):
        """A smooth, lopsided object of 48 x 44 x 40 voxels of 4 mm, moved by a 4x4 RAS matrix in its header."""
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 44, 48)), indexing="ij")
        data = np.zeros(x.shape)
        for cx, cy, cz, size, height in ((0, 0, 0, 0.55, 60), (0.25, 0.2, 0.1, 0.22, 60), (-0.3, 0.15, 0.2, 0.15, 90),
                                         (0.05, -0.35, -0.2, 0.18, 45), (-0.1, 0.3, -0.35, 0.12, 70)):
            data += height * np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + 1.3 * (z - cz) ** 2) / (2 * (size / 1.5) ** 2))
        ijkToRas = np.diag([4.0, 4.0, 4.0, 1.0])
        ijkToRas[:3, 3] = [-94, -86, -78]
        if matrix is not None:
            ijkToRas = matrix @ ijkToRas
        return slicer.util.addVolumeFromArray(data.astype(np.float32), ijkToRAS=ijkToRas, name=name)

    def _turn(self, degrees=20.0, shift=(12.0, -8.0, 5.0)):
        transform = vtk.vtkTransform()
        transform.Translate(*shift)
        transform.RotateWXYZ(degrees, 0.3, 0.2, 0.93)
        return slicer.util.arrayFromVTKMatrix(transform.GetMatrix())

    def _needTorch(self):
        state = torchsetup.state()
        if not state.ready:
            self.skipTest(state.sentence)
        if not engine.models():
            self.skipTest("no model is installed")

    # Tests

    def test_opensWithoutTorch(self):
        """What the window needs when it opens is there, whether PyTorch is or not."""
        self.assertIn("auto", [choice.key for choice in engine.modalities()])
        self.assertIsInstance(torchsetup.state().sentence, str)

    def test_volumesAreTakenWhereTheyAreSeen(self):
        parent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        slicer.util.updateTransformMatrixFromArray(parent, self._turn())
        volume = self._volume("moving")
        before = scene.voxelToWorld(volume)
        volume.SetAndObserveTransformNodeID(parent.GetID())
        np.testing.assert_allclose(scene.voxelToWorld(volume), self._turn() @ before, atol=1e-9)

    def test_badInputsGetASentence(self):
        fixed = self._volume("fixed")
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
        logic = SpatialDiffusionRegistrationLogic()
        for moving, expected in ((None, "moving"), (fixed, "same"), (labels, "label volume")):
            with self.assertRaisesRegex(ValueError, expected):
                logic.register(moving, fixed)

    def test_registers(self):
        """The object turned by 20 degrees comes back to within 5 mm, and the moving volume is under the transform."""
        self._needTorch()
        turn = self._turn()
        fixed, moving = self._volume("fixed"), self._volume("moving", turn)
        logic = SpatialDiffusionRegistrationLogic()
        seen = []
        transform = logic.register(moving, fixed, device="cpu", progress=seen.append)
        self.assertTrue(seen)
        self.assertIs(moving.GetParentTransformNode(), transform)
        error = slicer.util.arrayFromTransformMatrix(transform) @ turn - np.eye(4)
        points = np.array([[x, y, z, 1] for x in (-50, 50) for y in (-50, 50) for z in (-40, 40)]).T
        distance = np.linalg.norm((error @ points)[:3], axis=0)
        self.assertLess(distance.max(), 5.0)

    def test_cancelPutsTheSceneBack(self):
        self._needTorch()
        fixed, moving = self._volume("fixed"), self._volume("moving", self._turn())
        count = slicer.mrmlScene.GetNumberOfNodes()
        result = SpatialDiffusionRegistrationLogic().register(
            moving, fixed, device="cpu", progress=lambda step: step.index < 2)
        self.assertIsNone(result)
        self.assertIsNone(moving.GetParentTransformNode())
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
