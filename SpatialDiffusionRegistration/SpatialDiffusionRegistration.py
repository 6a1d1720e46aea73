"""Spatial Diffusion Registration: the Slicer module.

This file holds the four classes that Slicer looks for; the parts are in SpatialDiffusionRegistrationLib.  Nothing here
needs PyTorch until a registration starts.
"""

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
from SpatialDiffusionRegistrationLib import engine, masks, resampling, scene, torchsetup
from SpatialDiffusionRegistrationLib.batch_tab import BatchTab
from SpatialDiffusionRegistrationLib.parameters import SpatialDiffusionRegistrationParameterNode, release
from SpatialDiffusionRegistrationLib.problem import Problem
from SpatialDiffusionRegistrationLib.register_tab import RegisterTab
from SpatialDiffusionRegistrationLib.report import writeReport
from SpatialDiffusionRegistrationLib.request import Request
from SpatialDiffusionRegistrationLib.sampledata import registerSampleData
from SpatialDiffusionRegistrationLib.selftest import lopsidedVolume, turned
from SpatialDiffusionRegistrationLib.sequence_tab import SequenceTab
from SpatialDiffusionRegistrationLib.sequences import SequenceRequest, SequenceTask
from SpatialDiffusionRegistrationLib.task import Task
from SpatialDiffusionRegistrationLib.torchsetup import tooOld
from SpatialDiffusionRegistrationLib.watching import Later

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
        self.logic = self.registerTab = self.batchTab = self.sequenceTab = self.torchSetup = None
        self._parameterNode = self._parameterNodeGuiTag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/SpatialDiffusionRegistration.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = SpatialDiffusionRegistrationLogic()
        self.registerTab = RegisterTab(self.ui, self.onSetup, self._onRunningChanged)
        self.batchTab = BatchTab(self.ui, self._onRunningChanged, self.registerTab.lookAt, self._onModels)
        self.sequenceTab = SequenceTab(self.ui, self._onRunningChanged)
        self.torchSetup = torchsetup.SetupFrame(self.ui, self.resourcePath("requirements.txt"))
        self.ui.noticeLabel.text = tooOld(slicer.app.majorVersion, slicer.app.minorVersion)
        self.ui.noticeLabel.setVisible(bool(self.ui.noticeLabel.text))
        self.later = Later(self.onSceneEndClose)
        self._observeScene()
        self.torchSetup.update()
        self.registerTab.fillChoices()
        self.initializeParameterNode()

    def _observeScene(self):
        scene_ = slicer.mrmlScene
        for event, method in (
            (scene_.StartCloseEvent, self.onSceneStartClose),
            (scene_.EndCloseEvent, self.onSceneEndClose),
            (scene_.StartImportEvent, self.onSceneStartImport),
            (scene_.EndImportEvent, self.onSceneEndImport),
            (scene_.NodeAddedEvent, self.onNodeAdded),
            (scene_.NodeRemovedEvent, self.onNodeRemoved),
            (scene_.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved),
        ):
            self.addObserver(scene_, event, method)

    def cleanup(self):
        """The application closes, or the module is reloaded."""
        self.cancel()
        self.registerTab.review.leave()
        self.batchTab.stopLooking()
        self.setParameterNode(None)
        self.removeObservers()
        self.later.forget()
        self.registerTab.cleanup()
        self.batchTab.cleanup()
        self.sequenceTab.cleanup()

    def enter(self):
        self.torchSetup.update()
        self.registerTab.fillChoices()
        self.initializeParameterNode()

    def exit(self):
        """Another module is opened: a run goes on, but the views must not stay in a state of review."""
        self.registerTab.review.leave()
        self._disconnect()

    def cancel(self):
        """Stop whatever runs, putting the scene back."""
        self.registerTab.cancel()
        self.batchTab.stop()
        self.sequenceTab.cancel()

    # The scene

    def onSceneStartClose(self, caller=None, event=None):
        self.registerTab.abandon()
        self.batchTab.abandon()
        self.sequenceTab.abandon()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller=None, event=None):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneStartImport(self, caller=None, event=None):
        self.cancel()
        self.registerTab.review.leave()
        # At the end of an import the node selectors begin anew, with nothing chosen: not for the parameter node.
        self.setParameterNode(None)

    def onSceneEndImport(self, caller=None, event=None):
        # The wrapper caches node references, which an imported scene has just replaced: wrap anew.
        self.setParameterNode(None)
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onNodeAdded(self, caller=None, event=None):
        if self._mayFollow() and self.parent.isEntered:
            self.registerTab.later.ask()
            self.batchTab.later.ask()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node):
        if self._mayFollow() and node is self._parameterNode.parameterNode:
            self.cancel()
            self.setParameterNode(None)
            self.later.ask()  # then there can be another one
        elif self._mayFollow():
            release(self._parameterNode, node)

    def onNodeRemoved(self, caller=None, event=None):
        if self._mayFollow():
            self.registerTab.onNodeRemoved()
            self.batchTab.onNodeRemoved()
            self.sequenceTab.onNodeRemoved()

    def _mayFollow(self):
        scene_ = slicer.mrmlScene
        return not scene_.IsClosing() and not scene_.IsImporting() and self._parameterNode is not None

    # Parameters

    def initializeParameterNode(self):
        current = self._parameterNode
        if current is None or current.parameterNode.GetScene() is not slicer.mrmlScene:
            current = self.logic.getParameterNode()
        self.setParameterNode(current)

    def setParameterNode(self, parameterNode):
        self._disconnect()
        self._parameterNode = parameterNode
        if parameterNode:
            self._parameterNodeGuiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self.registerTab.setParameters(parameterNode)
        self.batchTab.setParameters(parameterNode)
        self.sequenceTab.setParameters(parameterNode)

    def _disconnect(self):
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._parameterNodeGuiTag = None
            if self.hasObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified):
                self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)

    def _onParametersModified(self, caller=None, event=None):
        self.registerTab.update()
        self.batchTab.update()
        self.sequenceTab.update()

    def _onModels(self):
        """There may be another model to choose, and another modality."""
        self.registerTab.fillChoices()
        self.registerTab.update()

    def _onRunningChanged(self):
        tabs = self.registerTab, self.batchTab, self.sequenceTab
        if None not in tabs:
            for tab in tabs:
                tab.setAvailable(not any(other.running for other in tabs if other is not tab))

    # PyTorch

    def onSetup(self, *_ignored):
        """Install or update PyTorch, after asking."""
        self.torchSetup.onButton()

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
        self.motion = None
        """What the last call of `registerSequence` found (SpatialDiffusionCore.SeriesRegistration)."""

    def getParameterNode(self):
        return SpatialDiffusionRegistrationParameterNode(super().getParameterNode())

    def register(
        self,
        movingVolume,
        fixedVolume,
        modality="auto",
        *,
        movingModality=None,
        fixedModality=None,
        transform="affine",
        outputTransform=None,
        outputVolume=None,
        interpolation="linear",
        alsoMove=(),
        initialTransform=None,
        movingMask=None,
        fixedMask=None,
        movingSegment="",
        fixedSegment="",
        movingLandmarks=None,
        fixedLandmarks=None,
        progress=None,
        **settings,
    ):
        """Register and wait; return the transform node, with the moving volume under it.

        :param movingVolume, fixedVolume: scalar volume nodes, taken where they are seen, with the linear transforms
          they are under.
        :param modality: kind of both images ("t1-brain", "ct-head-neck", "any", ...); "auto" recognizes T1 brains and
          head-and-neck CTs. `movingModality` and `fixedModality` are for when they differ.
        :param transform: "rigid", "similarity" or "affine".
        :param outputTransform: linear transform node to fill; None makes a new one.
        :param outputVolume: scalar volume node that receives the moving volume resampled on the fixed one's grid, with
          the moving volume's pixel type. `interpolation`: "linear", "nearest" (no new values, for labels) or "cubic".
        :param alsoMove: segmentations, models, markups and volumes that follow the moving volume.
        :param initialTransform: linear transform node from moving to fixed to begin with.
        :param movingMask, fixedMask: label volume, segmentation or ROI nodes; what is outside is ignored.
          `movingSegment`, `fixedSegment`: name or ID of the one segment that counts, to register bones one by one.
        :param movingLandmarks, fixedLandmarks: point lists; `result.landmarkErrors()` tells their distances in mm.
        :param progress: called with every step (index, count, stage, matrix); if it returns False, the registration
          is cancelled, the scene is put back, and None is returned.
        :param settings: model, sampler, steps, bidirectional, polish, device, seed, search as in
          SpatialDiffusionCore.register; threads: processor threads that PyTorch may use.
        :raises ValueError: if something given can not be used; one sentence. The scene is unchanged after any error.
        """
        request = Request(
            movingVolume, fixedVolume, engine.settingsOf(modality, movingModality, fixedModality, transform, settings),
            outputTransform=outputTransform, outputVolume=outputVolume, interpolation=resampling.known(interpolation),
            alsoMove=tuple(alsoMove), initialTransform=initialTransform, movingMask=movingMask, fixedMask=fixedMask,
            movingSegment=masks.segmentID(movingMask, movingSegment),
            fixedSegment=masks.segmentID(fixedMask, fixedSegment),
            movingLandmarks=movingLandmarks, fixedLandmarks=fixedLandmarks,
        )  # fmt: skip
        task = Task(request)
        run = task.run()
        for step in run:
            if progress is not None and progress(step) is False:
                run.close()
                return None
        self.result = task.result
        return task.transformNode

    def registerMany(
        self,
        movingVolumes,
        fixedVolume,
        modality="auto",
        *,
        movingModality=None,
        fixedModality=None,
        transform="affine",
        initialTransform=None,
        fixedMask=None,
        fixedSegment="",
        outputFolder="",
        keepVolumes=True,
        report="",
        review="",
        progress=None,
        **settings,
    ):
        """Register many volumes to one, one after the other; return a transform node for each, None where it failed.

        :param movingVolumes: volume nodes, or paths of image files, or both.
        :param initialTransform, fixedMask, fixedSegment: as in `register`, for every volume.
        :param outputFolder: if given, every transform is written there (.tfm).
        :param keepVolumes: whether volumes read from files stay in the scene.
        :param report: path of a CSV report: the columns of the shell's table, then landmarks and matrices.
        :param review: folder for a page to review all pairs in the browser (index.html).
        :param progress: called with (item, step); if it returns False, the rest is left out.
        :param settings: as in `register`.
        :raises ValueError: if the call can not start, or if every volume failed (with the first one's sentence).
        """
        items = batchRuns.itemsOf(movingVolumes)
        plan = batchRuns.Plan(
            fixedVolume,
            engine.settingsOf(modality, movingModality, fixedModality, transform, settings),
            fixedMask=fixedMask,
            fixedSegment=masks.segmentID(fixedMask, fixedSegment),
            initialTransform=initialTransform,
        )
        many = batchRuns.Batch(items, plan, outputFolder, keepVolumes, review)
        problem = many.problem()
        if problem:
            raise Problem(problem)
        run = many.run()
        for item, step in run:
            if progress is not None and progress(item, step) is False:
                run.close()
                break
        if report:
            writeReport(report, items)
        if all(item.status == batchRuns.FAILED for item in items):
            raise Problem(_("No volume could be registered: {reason}").format(reason=items[0].error))
        return [item.transformNode for item in items]

    def registerSequence(self, sequence, reference=None, transform="rigid", progress=None, review=""):
        """Lay every frame of a sequence of volumes on one of them; return the sequence of transforms.

        The volume that shows the sequence in the views is put under the transform of its frame, in the same browser.

        :param sequence: vtkMRMLSequenceNode of scalar volumes.
        :param reference: number of the frame that the others are laid on, from 0; None takes one like most others.
        :param transform: "rigid", "similarity" or "affine".
        :param progress: called with every step; if it returns False, nothing is changed, and None is returned.
        :param review: folder for a page to review all frames in the browser (index.html).
        :raises ValueError: if something given can not be used; one sentence.
        """
        if review:
            engine.preparePage(review)
        task = SequenceTask(SequenceRequest(sequence, reference, transform))
        run = task.run()
        for step in run:
            if progress is not None and progress(step) is False:
                run.close()
                return None
        self.motion = task.motion
        if review:
            for _page in engine.seriesPageSteps(task.motion, str(review)):
                pass
        return task.transforms

    def resample(self, volume, reference, outputVolume=None, interpolation=None):
        """Put a volume as it is seen on the grid of another; return the node.

        So a label volume that has moved along ends on the fixed volume's grid, without new values.

        :param volume: scalar or label volume node, under any linear transforms.
        :param reference: volume node whose grid is taken.
        :param outputVolume: node of the same class to fill; None makes a new one.
        :param interpolation: "linear", "nearest" or "cubic"; None takes nearest for label volumes, else linear.
        :raises ValueError: if something given can not be used; one sentence.
        """
        return resampling.resampledNode(volume, reference, outputVolume, interpolation)


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
        slicer.util.updateTransformMatrixFromArray(parent, turned())
        volume = lopsidedVolume("moving")
        before = scene.voxelToWorld(volume)
        volume.SetAndObserveTransformNodeID(parent.GetID())
        np.testing.assert_allclose(scene.voxelToWorld(volume), turned() @ before, atol=1e-9)

    def test_badInputsGetASentence(self):
        fixed = lopsidedVolume("fixed")
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
        logic = SpatialDiffusionRegistrationLogic()
        for moving, expected in ((None, "moving"), (fixed, "same"), (labels, "label volume")):
            with self.assertRaisesRegex(ValueError, expected):
                logic.register(moving, fixed)

    def test_registers(self):
        """The object turned by 20 degrees comes back to within 5 mm, and the moving volume is under the transform."""
        self._needTorch()
        turn = turned()
        fixed, moving = lopsidedVolume("fixed"), lopsidedVolume("moving", turn)
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
        fixed, moving = lopsidedVolume("fixed"), lopsidedVolume("moving", turned())
        count = slicer.mrmlScene.GetNumberOfNodes()
        result = SpatialDiffusionRegistrationLogic().register(
            moving, fixed, device="cpu", progress=lambda step: step.index < 2
        )
        self.assertIsNone(result)
        self.assertIsNone(moving.GetParentTransformNode())
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
