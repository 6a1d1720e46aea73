"""The window in the application itself, with scripted steps in place of the core: no PyTorch, no model, no network."""

import sys
import time
import types
import unittest
from unittest import mock

import numpy as np
import slicer


class SpatialDiffusionRegistrationWindowTest(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear()
        self.widget = slicer.util.getModuleWidget("SpatialDiffusionRegistration")
        self.widget.enter()
        data = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
        self.moving = slicer.util.addVolumeFromArray(data, name="moving")
        self.fixed = slicer.util.addVolumeFromArray(data, name="fixed")
        self.matrix = np.eye(4)
        self.matrix[:3, 3] = 1, 2, 3

    def tearDown(self):
        self.widget.cancel()
        slicer.mrmlScene.Clear()

    def scriptedSteps(self, *_arguments, **_options):
        """Six steps toward a known shift, and a result as the core's."""
        for index in range(1, 7):
            matrix = np.eye(4)
            matrix[:3, 3] = self.matrix[:3, 3] * index / 6
            yield types.SimpleNamespace(index=index, count=6, stage="Scripted", matrix=matrix)
        return types.SimpleNamespace(
            matrix=self.matrix,
            transform="affine",
            model="scripted",
            modality=("any", "any"),
            seconds=0.1,
            report=dict,
            kinds=lambda: "any kind",
            quality=types.SimpleNamespace(
                similarity_before=0.2,
                similarity_after=0.9,
                overlap=1.0,
                spread_mm=0.5,
                confidence="good",
                warnings=[],
                same_sides=True,
                summary=lambda: "",
            ),
            decomposition=types.SimpleNamespace(
                rotation_deg=0.0,
                translation_mm=(1, 2, 3),
                scales_percent=(100, 100, 100),
                shears=(0, 0, 0),
                mirrored=False,
            ),
        )

    def run_(self, until):
        engine = sys.modules["SpatialDiffusionRegistrationLib.engine"]  # after Reload, this is the one of the window
        with mock.patch.object(engine, "steps", self.scriptedSteps):
            self.widget._parameterNode.movingVolume = self.moving
            self.widget._parameterNode.fixedVolume = self.fixed
            self.assertTrue(self.widget.ui.registerButton.enabled, self.widget.ui.registerButton.toolTip)
            self.widget.ui.registerButton.click()
            end = time.monotonic() + 30
            while not until():
                slicer.app.processEvents()
                self.assertLess(time.monotonic(), end)

    def test_register(self):
        self.run_(lambda: not self.widget.registerTab.running)
        transform = self.widget._parameterNode.outputTransform
        self.assertIs(self.moving.GetParentTransformNode(), transform)
        np.testing.assert_allclose(slicer.util.arrayFromTransformMatrix(transform), self.matrix)
        self.assertIn("0.90", self.widget.ui.similarityValue.text)

    def test_cancel(self):
        nodes = slicer.mrmlScene.GetNumberOfNodes()
        self.run_(lambda: self.widget.ui.progressBar.value >= 3)
        self.widget.ui.registerButton.click()
        self.assertIsNone(self.moving.GetParentTransformNode())
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), nodes)

    def test_undo(self):
        nodes = slicer.mrmlScene.GetNumberOfNodes()
        self.run_(lambda: not self.widget.registerTab.running)
        self.widget.ui.undoButton.click()
        self.assertIsNone(self.moving.GetParentTransformNode())
        self.assertIsNone(self.widget._parameterNode.outputTransform)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), nodes)

    def test_anotherVolumeDoesNotOverwriteTheResult(self):
        self.run_(lambda: not self.widget.registerTab.running)
        self.widget._parameterNode.movingVolume = slicer.util.addVolumeFromArray(
            np.random.default_rng(1).random((20, 20, 20)).astype(np.float32), name="another"
        )
        self.assertIsNone(self.widget._parameterNode.outputTransform)
        self.assertIsNone(self.widget.ui.outputTransformSelector.currentNode())
