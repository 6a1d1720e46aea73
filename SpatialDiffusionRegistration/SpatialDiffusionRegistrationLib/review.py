"""Judging a result in the slice views: fade, flicker, checkerboard, colors, before and after."""

from __future__ import annotations

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from . import resampling
from .cursor import waitCursor
from .hidden import hiddenCopy, hiddenNode, ownTransform, removeHidden
from .messages import offer
from .problem import explain
from .views import ViewState, viewsOf

FLICKER_MILLISECONDS = 600
RED, CYAN = "vtkMRMLColorTableNodeRed", "vtkMRMLColorTableNodeCyan"


class Review:
    """Drives the widgets of the Review section, in the views that show the pair.

    Everything it adds to the scene is hidden, is not saved with it, and goes when it is switched off; then the views
    show what they showed before.  The volumes themselves are never touched.
    """

    def __init__(self, ui, onProblem, onSwitched=lambda: None):
        """`onSwitched()` is called whenever something is switched on or off."""
        self._ui, self._onProblem, self._onSwitched = ui, onProblem, onSwitched
        self._moving = self._fixed = self._result = self._original = None
        self._helpers = {}  # name -> hidden node that is in the scene now
        self._states = []  # of the views, before the first switch was turned on
        self._quiet = self._paused = False
        self._showsMoving = True  # while flickering
        self._timer = qt.QTimer()
        self._timer.setInterval(FLICKER_MILLISECONDS)
        self._timer.connect("timeout()", self._flick)
        ui.fadeSlider.connect("valueChanged(int)", self._onFade)
        ui.flickerBox.connect("toggled(bool)", self._onFlicker)
        ui.checkerboardBox.connect("toggled(bool)", self._onCheckerboard)
        ui.colorBox.connect("toggled(bool)", self._onColors)
        ui.beforeButton.connect("toggled(bool)", self._onBefore)

    def show(self, moving, fixed, result=None, original=None):
        """What to review; None for nothing.

        :param moving: what stands for the moving volume: itself, or its resampled copy.
        :param result: needed for before and after only.
        :param original: the moving volume itself, which is shown where it was before.
        """
        if moving is not self._moving or fixed is not self._fixed or result != self._result:
            self.leave()
        self._moving, self._fixed, self._result, self._original = moving, fixed, result, original
        self._ui.reviewSection.setEnabled(moving is not None and fixed is not None)
        offer(self._ui.beforeButton, _beforeProblem(moving, result, original))

    def leave(self):
        """Switch everything off."""
        for box in (self._ui.flickerBox, self._ui.checkerboardBox, self._ui.colorBox, self._ui.beforeButton):
            box.setChecked(False)  # their slots put things back

    def forget(self):
        """The scene is going away: drop the nodes without touching them."""
        self._timer.stop()
        self._moving = self._fixed = self._result = self._original = None
        self._helpers, self._states = {}, []
        self._quiet, self._paused = True, False
        self.leave()
        self._quiet = False
        self._ui.beforeButton.setText(_("Show before"))
        self._ui.reviewSection.setEnabled(False)

    def nodes(self):
        return [node for node in (self._moving, self._fixed, self._original) if node is not None]

    def pause(self):
        """Let the views show what they showed before, as somebody may save the scene now."""
        if self.isOn and not self._paused:
            for state in self._states:
                state.restore()
            self._paused = True

    def resume(self):
        if self._paused:
            self._paused = False
            self._draw()

    @property
    def _before(self):
        """The hidden copy that shows the moving volume where it was, while it is shown."""
        return self._helpers.get("before")

    @property
    def _board(self):
        """The checkerboard, while it is shown."""
        return self._helpers.get("board") or self._helpers.get("board before")

    # The switches

    @property
    def isOn(self):
        ui = self._ui
        return any(box.isChecked() for box in (ui.flickerBox, ui.checkerboardBox, ui.colorBox, ui.beforeButton))

    def _onFade(self, percent):
        """Fade; without a switch it is the views' own opacity, with one also what comes back after it."""
        for state in self._states:
            state.opacity = percent / 100.0
        if self.isOn:
            self._draw()
        elif self._moving is not None and self._fixed is not None:
            for view in viewsOf(self._fixed, self._moving):
                view.setLayers(self._fixed, self._moving, percent / 100.0)

    def _onFlicker(self, on):
        if on:
            self._only(self._ui.flickerBox)
            self._showsMoving = True
            self._timer.start()
        else:
            self._timer.stop()
        self._draw()

    def _onCheckerboard(self, on):
        if on:
            self._only(self._ui.checkerboardBox)
        self._draw()

    def _onColors(self, on):
        if on:
            self._only(self._ui.colorBox)
        self._draw()

    def _onBefore(self, on):
        self._ui.beforeButton.setText(_("Show after") if on else _("Show before"))
        self._draw()

    def _only(self, box):
        """Flicker, checkerboard and colors exclude each other."""
        was, self._quiet = self._quiet, True
        for other in (self._ui.flickerBox, self._ui.checkerboardBox, self._ui.colorBox):
            if other is not box:
                other.setChecked(False)
        self._quiet = was

    def _flick(self):
        self._showsMoving = not self._showsMoving
        self._draw()

    # Drawing

    def _draw(self):
        """Let the views show what the switches say, then remove what nobody shows any more."""
        if self._quiet or self._paused:
            return
        self._onSwitched()
        if not self.isOn or self._moving is None or self._fixed is None:
            self._restore()
            return
        if not self._states:
            self._states = [ViewState.of(view) for view in viewsOf(self._fixed, self._moving)]
        old, self._helpers = self._helpers, {}
        try:
            with waitCursor():
                layers = self._layers(old)
        except Exception as error:
            self._helpers = {**old, **self._helpers}
            self._onProblem(explain(error))
            self.leave()
            return
        for state in self._states:
            if state.view.isAlive():
                state.view.setLayers(*layers)
        for name, node in old.items():
            if self._helpers.get(name) is not node:
                removeHidden(node)

    def _layers(self, old):
        """(background, foreground, opacity, compositing) for the views."""
        ui = self._ui
        moving = self._moving
        alpha, add = _compositings()
        if ui.beforeButton.isChecked() and self._result is not None:
            moving = self._keep("before", old, self._makeBefore)
        if ui.checkerboardBox.isChecked():
            kind = "board before" if moving is not self._moving else "board"
            return self._keep(kind, old, lambda: self._makeBoard(moving)), None, 1.0, alpha
        if ui.colorBox.isChecked():
            kind = "red before" if moving is not self._moving else "red"
            red = self._keep(kind, old, lambda: self._makeColored(moving, RED))
            cyan = self._keep("cyan", old, lambda: self._makeColored(self._fixed, CYAN))
            return cyan, red, 1.0, add
        opacity = ui.fadeSlider.value / 100.0
        if ui.flickerBox.isChecked():
            opacity = 1.0 if self._showsMoving else 0.0
        return self._fixed, moving, opacity, alpha

    def _keep(self, name, old, make):
        node = old.get(name)
        self._helpers[name] = node if node is not None and node.GetScene() is not None else make()
        return self._helpers[name]

    def _restore(self):
        states, self._states = self._states, []
        for state in states:
            state.restore()
        old, self._helpers = self._helpers, {}
        for node in old.values():
            removeHidden(node)

    # Hidden volumes that share the voxels of the originals

    def _makeBefore(self):
        """The moving volume's voxels where they were."""
        node = hiddenCopy(
            self._original,
            _("{name} before registration").format(name=self._original.GetName()),
            self._result.movingHeader,  # hardening has changed that of the node
        )
        transform = ownTransform(node, _("Before registration"))
        slicer.util.updateTransformMatrixFromArray(transform, np.array(self._result.before))
        return node

    def _makeColored(self, source, colorID):
        node = hiddenCopy(source, _("{name} in color").format(name=source.GetName()))
        node.GetDisplayNode().SetAndObserveColorNodeID(colorID)
        node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        return node

    def _makeBoard(self, moving):
        image = resampling.checkerboardImage(moving, self._fixed)
        node = hiddenNode("vtkMRMLScalarVolumeNode", _("Checkerboard"))
        matrix = vtk.vtkMatrix4x4()
        self._fixed.GetIJKToRASMatrix(matrix)
        node.SetIJKToRASMatrix(matrix)
        node.SetAndObserveImageData(image)
        slicer.mrmlScene.AddNode(node)
        display = hiddenNode("vtkMRMLScalarVolumeDisplayNode", _("Checkerboard"))
        slicer.mrmlScene.AddNode(display)
        display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(0, 255)
        node.SetAndObserveDisplayNodeID(display.GetID())
        node.SetAndObserveTransformNodeID(self._fixed.GetTransformNodeID())
        return node


def _beforeProblem(moving, result, original) -> str:
    """Why the moving volume can not be shown where it was, or ""."""
    if moving is None or result is None:
        return _("Register these volumes first.")
    return "" if result.knowsBefore(original) else _("The moving volume has another size than when it was registered.")


def _compositings():
    """How the foreground is laid over the background: by opacity, or by adding the colors up."""
    node = slicer.vtkMRMLSliceCompositeNode
    return node.Alpha, node.Add
