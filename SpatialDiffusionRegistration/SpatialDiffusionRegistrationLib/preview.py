"""The moving volume on its way, in the views, while a registration runs."""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import scene
from .change import isAlive
from .hidden import hiddenCopy, ownTransform, removeHidden
from .views import ViewState, viewsOf


class Preview:
    """Shows a copy of the moving volume over the fixed one, and moves that.

    The person's own nodes stay as they are until the run has ended well: a scene that is saved meanwhile, by whatever
    way, holds nothing half done.
    """

    def __init__(self, movingNode, fixedNode):
        self.matrix = np.eye(4)
        self._movingNode, self._fixedNode = movingNode, fixedNode
        self._before = scene.matrixToWorld(movingNode.GetParentTransformNode())
        self._states, self._paused = [], None
        self._node = self._transform = None

    def show(self, change, opacity=0.5):
        """Show the copy where the moving volume is; `change`: the SceneChange of the run, whose `undo` gives the views
        back."""
        views = viewsOf(self._fixedNode, self._movingNode)
        self._states = [ViewState.of(view) for view in views]
        change.onUndo(self._giveBack)
        # By the same name: that is what the views write in their corners.
        self._node = hiddenCopy(self._movingNode, self._movingNode.GetName())
        self._transform = ownTransform(self._node, _("Registration preview"))
        self.move(self.matrix)
        for view in views:
            wasFixed = view.composite.GetBackgroundVolumeID() == self._fixedNode.GetID()
            view.setLayers(self._fixedNode, self._node, opacity)
            if not wasFixed:
                view.fit()

    def move(self, matrix):
        """Show the moving volume as moved by a 4x4 world matrix from where it is seen."""
        self.matrix = np.asarray(matrix, dtype=float)
        if isAlive(self._transform):
            slicer.util.updateTransformMatrixFromArray(self._transform, self.matrix @ self._before)

    def pause(self):
        """Let the views show what they showed before the run, as somebody may save the scene now."""
        if self._paused is None:
            self._paused = [ViewState.of(state.view) for state in self._states if state.view.isAlive()]
            self._giveBack()

    def resume(self):
        paused, self._paused = self._paused, None
        for state in paused or ():
            state.restore()

    def _giveBack(self):
        for state in self._states:
            state.restore()

    def remove(self):
        """Take the copy away; the views have something else to show by now."""
        removeHidden(self._node)
