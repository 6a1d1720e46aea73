"""Whatever is clicked, in whatever order: nothing of the person's own is harmed, and nothing is left behind."""

from __future__ import annotations

import random

import numpy as np
import pytest

from SlicerHarness.fixtures import (
    idle,
    qt,
    savedScene,
    scripted,
    slicer,
    smallVolume,
    waitFor,
)

STEPS = 30


def shift(node, millimeters):
    matrix = np.eye(4)
    matrix[:3, 3] = millimeters
    slicer.util.updateTransformMatrixFromArray(node, matrix)


def leftBehind():
    """Hidden nodes that are not the slice views' own."""
    return [
        node.GetName()
        for node in slicer.util.getNodesByClass("vtkMRMLNode")
        if node.GetHideFromEditors()
        and not node.GetSaveWithScene()
        and (node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLDisplayNode") or node.IsA("vtkMRMLTransformNode"))
        and not node.GetName().startswith(("Red ", "Green ", "Yellow "))
    ]


class Person:
    """Clicks and changes at random; remembers the voxels of what is the person's own."""

    def __init__(self, window, loaded, seed):
        self.window, self.loaded, self.ui = window, loaded, window.ui
        self.chance, self.done = random.Random(seed), []
        self.voxels = {}
        for name in "ABCD":
            self.addVolume(name)
        self.own = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", f"Own {n}") for n in (1, 2)]
        for node in self.own:
            shift(node, [self.chance.uniform(-9, 9) for _ in range(3)])
        self.volume().SetAndObserveTransformNodeID(self.own[0].GetID())

    @property
    def p(self):
        return self.window._parameterNode

    def addVolume(self, name="New"):
        node = smallVolume(name, self.chance.randrange(1000), (self.chance.choice([12, 20]), 14, 16))
        self.voxels[node.GetID()] = slicer.util.arrayFromVolume(node).copy()

    def volumes(self):
        nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        return [node for node in nodes if not node.GetHideFromEditors()]

    def volume(self):
        return self.chance.choice(self.volumes() or [None])

    def transform(self):
        """One of the person's own, or None."""
        return self.chance.choice([None, *(node for node in self.own if node.GetScene() is not None)])

    # What may happen

    def chooseMoving(self):
        self.p.movingVolume = self.volume()

    def chooseFixed(self):
        self.p.fixedVolume = self.volume()

    def chooseOutput(self):
        self.p.outputTransform = self.transform()

    def swap(self):
        self.ui.swapButton.click()

    def register(self):
        if self.ui.registerButton.enabled and not self.window.registerTab.running:
            self.ui.registerButton.click()
            waitFor(self.window)

    def registerAndCancel(self):
        if not self.ui.registerButton.enabled or self.window.registerTab.running:
            return
        self.reviewOff()
        before, step = savedScene(), self.chance.randrange(1, 6)
        self.ui.registerButton.click()
        tab, bar = self.window.registerTab, self.ui.progressBar
        waitFor(self.window, lambda: not tab.running or (bar.maximum > 0 and bar.value >= step))
        if tab.running:
            self.ui.registerButton.click()
            assert savedScene() == before, self.done

    def registerMeanwhile(self):
        if self.ui.registerButton.enabled and not self.window.registerTab.running:
            self.ui.registerButton.click()

    def undo(self):
        if self.ui.undoButton.enabled and not self.ui.undoButton.isHidden():
            self.ui.undoButton.click()

    def review(self):
        ui = self.ui
        self.chance.choice((ui.checkerboardBox, ui.colorBox, ui.flickerBox, ui.beforeButton, ui.beforeButton)).click()
        ui.fadeSlider.setValue(self.chance.randrange(101))

    def remove(self):
        if len(self.volumes()) > 2:
            slicer.mrmlScene.RemoveNode(self.volume())

    def harden(self):
        node = self.volume()
        if node is not None:
            node.HardenTransform()

    def putUnder(self):
        node, transform = self.volume(), self.transform()
        if node is not None:
            node.SetAndObserveTransformNodeID(transform.GetID() if transform is not None else None)

    def editTransform(self):
        node = self.transform()
        if node is not None:
            shift(node, [self.chance.uniform(-9, 9) for _ in range(3)])

    def alsoMove(self):
        items = self.ui.alsoMoveList
        if items.count and items.item(0).flags() & qt.Qt.ItemIsUserCheckable:
            items.item(self.chance.randrange(items.count)).setCheckState(qt.Qt.Checked)

    def leaveAndEnter(self):
        self.loaded.exit()
        idle()
        self.loaded.enter()

    def preview(self):
        self.p.livePreview = not self.p.livePreview

    def batch(self):
        self.ui.batchAddSceneButton.click()
        if self.ui.batchRunButton.enabled and not self.window.batchTab.running:
            self.ui.batchRunButton.click()

    def reviewOff(self):
        for box in (self.ui.checkerboardBox, self.ui.colorBox, self.ui.flickerBox, self.ui.beforeButton):
            box.setChecked(False)

    ACTIONS = (
        chooseMoving, chooseFixed, chooseOutput, swap, register, registerAndCancel, registerMeanwhile, undo, review,
        review, addVolume, remove, harden, putUnder, editTransform, alsoMove, leaveAndEnter, preview, batch,
    )  # fmt: skip

    def act(self):
        action = self.chance.choice(self.ACTIONS)
        self.done.append(action.__name__)
        action(self)
        idle()

    def checkVoxels(self):
        for node in self.volumes():
            if node.GetID() in self.voxels:
                assert np.array_equal(slicer.util.arrayFromVolume(node), self.voxels[node.GetID()]), self.done


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_clicked_harms_nothing_and_leaves_nothing_behind(panel, loaded, monkeypatch, seed):
    scripted(monkeypatch, panel)
    person = Person(panel, loaded, seed)
    answers = random.Random(seed)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_a, **_k: answers.random() < 0.7)
    for _step in range(STEPS):
        person.act()
        person.checkVoxels()
    waitFor(panel)
    person.reviewOff()
    idle()
    assert leftBehind() == [], person.done
    assert not panel.registerTab.running and not panel.batchTab.running
