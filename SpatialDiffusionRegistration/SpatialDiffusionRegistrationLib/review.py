"""Judging a result in the slice views: fade, flicker, checkerboard, before and after."""
from __future__ import annotations

import numpy as np
import qt
import slicer
import vtk
from slicer.i18n import tr as _

from . import engine, scene
from .problem import explain

FLICKER_MILLISECONDS = 600
SQUARE_MILLIMETERS = 25.0


class Review:
    """Drives the widgets of the Review section.  Everything it adds to the scene is hidden, is not saved with it, and
    goes when it is switched off; the volumes themselves are never touched."""

    def __init__(self, ui, onProblem):
        self._ui, self._onProblem = ui, onProblem
        self._moving = self._fixed = self._result = None
        self._board = None  # the checkerboard
        self._before = self._beforeTransform = None  # the moving volume's voxels where they were
        self._timer = qt.QTimer()
        self._timer.setInterval(FLICKER_MILLISECONDS)
        self._timer.connect("timeout()", self._flick)
        ui.fadeSlider.connect("valueChanged(int)", self._onFade)
        ui.flickerBox.connect("toggled(bool)", self._onFlicker)
        ui.checkerboardBox.connect("toggled(bool)", self._onCheckerboard)
        ui.beforeButton.connect("toggled(bool)", self._onBefore)

    def show(self, moving, fixed, result):
        """What to review; None for nothing.  `result` is needed for before and after only."""
        if moving is not self._moving or fixed is not self._fixed or result != self._result:
            self.leave()
        self._moving, self._fixed, self._result = moving, fixed, result
        self._ui.reviewSection.setEnabled(moving is not None and fixed is not None)
        self._ui.beforeButton.setEnabled(moving is not None and result is not None)

    def leave(self):
        """Switch everything off."""
        for box in (self._ui.flickerBox, self._ui.checkerboardBox, self._ui.beforeButton):
            box.setChecked(False)  # their slots put things back

    def forget(self):
        """The scene is going away: drop the nodes without touching them."""
        self._timer.stop()
        self._moving = self._fixed = self._result = self._board = self._before = self._beforeTransform = None
        self.leave()
        self._ui.reviewSection.setEnabled(False)

    def _shown(self):
        """The node that stands for the moving volume now."""
        return self._before if self._before is not None else self._moving

    def _layers(self, opacity):
        if self._moving is not None and self._fixed is not None:
            slicer.util.setSliceViewerLayers(background=self._fixed, foreground=self._shown(),
                                             foregroundOpacity=opacity)

    def _plain(self):
        self._layers(self._ui.fadeSlider.value / 100.0)

    # Fade and flicker

    def _onFade(self, percent):
        if not self._ui.checkerboardBox.isChecked():
            self._layers(percent / 100.0)

    def _onFlicker(self, on):
        if on:
            self._ui.checkerboardBox.setChecked(False)
            self._flick()
            self._timer.start()
        else:
            self._timer.stop()
            self._plain()

    def _flick(self):
        composite = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
        showsMoving = bool(composite) and composite[0].GetForegroundOpacity() > 0.5
        self._layers(0.0 if showsMoving else 1.0)

    # Before and after

    def _onBefore(self, on):
        self._ui.beforeButton.setText(_("Show after") if on else _("Show before"))
        if on and self._moving is not None and self._result is not None:
            self._beforeTransform = _hidden("vtkMRMLLinearTransformNode", _("Before registration"))
            slicer.mrmlScene.AddNode(self._beforeTransform)
            slicer.util.updateTransformMatrixFromArray(self._beforeTransform, np.array(self._result.before))
            self._before = _hidden("vtkMRMLScalarVolumeNode", _("{name} before registration").format(
                name=self._moving.GetName()))
            self._before.SetAndObserveImageData(self._moving.GetImageData())
            matrix = vtk.vtkMatrix4x4()
            self._moving.GetIJKToRASMatrix(matrix)
            self._before.SetIJKToRASMatrix(matrix)
            slicer.mrmlScene.AddNode(self._before)
            self._before.SetAndObserveDisplayNodeID(self._moving.GetDisplayNodeID())
            self._before.SetAndObserveTransformNodeID(self._beforeTransform.GetID())
        else:
            gone, self._before = self._before, None
            if gone is not None and not self._ui.checkerboardBox.isChecked():
                self._plain()  # before the node goes, or the views would be empty for a moment
            _remove(gone)  # but not its display node, which is the moving volume's
            _remove(self._beforeTransform)
            self._beforeTransform = None
        if self._ui.checkerboardBox.isChecked():
            self._removeBoard()
            self._showBoard()
        elif on:
            self._plain()

    # Checkerboard

    def _onCheckerboard(self, on):
        if on:
            self._ui.flickerBox.setChecked(False)
            self._showBoard()
        else:
            self._plain()
            self._removeBoard()

    def _showBoard(self):
        try:
            with slicer.util.WaitCursor():
                self._board = checkerboard(self._shown(), self._fixed)
        except Exception as error:
            self._ui.checkerboardBox.setChecked(False)
            self._onProblem(explain(error))
            return
        slicer.util.setSliceViewerLayers(background=self._board, foreground=None)

    def _removeBoard(self):
        board, self._board = self._board, None
        if board is not None:
            display = board.GetDisplayNode()
            _remove(board)  # first: a view that shows a volume without a display node would make it a new one
            _remove(display)


def _hidden(className, name):
    """A new node that people do not see in lists, and that is not saved; not in the scene yet."""
    node = slicer.mrmlScene.CreateNodeByClass(className)
    node.UnRegister(None)
    node.SetName(name)
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    return node


def _remove(node):
    if node is not None and node.GetScene() is not None:
        slicer.mrmlScene.RemoveNode(node)


def checkerboard(movingNode, fixedNode):
    """A hidden volume node on the fixed volume's grid, with squares of either volume as both are seen now."""
    moving = scene.coreVolume(movingNode, scene.MOVING)
    fixed = scene.coreVolume(fixedNode, scene.FIXED)
    moved = engine.resample(moving, fixed, np.eye(4))
    divisions = [max(2, int(round(size * spacing / SQUARE_MILLIMETERS)))
                 for size, spacing in zip(fixed.data.shape, np.linalg.norm(fixed.voxel_to_ras[:3, :3], axis=0))]
    board = vtk.vtkImageCheckerboard()
    board.SetNumberOfDivisions(divisions)
    board.SetInput1Data(_asShown(fixed.data, fixedNode))
    board.SetInput2Data(_asShown(moved.data, movingNode))
    board.Update()

    node = _hidden("vtkMRMLScalarVolumeNode", _("Checkerboard"))
    node.SetAndObserveImageData(board.GetOutput())
    matrix = vtk.vtkMatrix4x4()
    fixedNode.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    slicer.mrmlScene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevelMinMax(0, 255)
    node.GetDisplayNode().SetHideFromEditors(True)
    node.GetDisplayNode().SetSaveWithScene(False)
    node.SetAndObserveTransformNodeID(fixedNode.GetTransformNodeID())
    return node


def _asShown(data, volumeNode):
    """Voxels as gray values 0..255 under the volume's window and level."""
    from vtk.util.numpy_support import numpy_to_vtk
    image = vtk.vtkImageData()
    image.SetDimensions(data.shape)
    flat = np.ascontiguousarray(data.transpose(2, 1, 0), dtype=np.float32).ravel()
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    gray = vtk.vtkImageMapToWindowLevelColors()
    gray.SetInputData(image)
    display = volumeNode.GetScalarVolumeDisplayNode()
    if display is not None:
        gray.SetWindow(display.GetWindow())
        gray.SetLevel(display.GetLevel())
    else:
        low, high = np.percentile(data, (1, 99))
        gray.SetWindow(high - low)
        gray.SetLevel((high + low) / 2)
    gray.SetOutputFormatToLuminance()
    gray.Update()
    return gray.GetOutput()
