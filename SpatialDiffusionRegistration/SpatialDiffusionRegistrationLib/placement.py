"""The output transform and what follows it."""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import scene


class Placement:
    """The output transform and what follows it.

    With R the matrix from moving to fixed as both are seen, and B the matrix of the transforms the moving volume was
    under, the output transform holds R B and takes their place: it carries the moving volume's own coordinates onto
    the fixed volume, and the user's transforms stay as they were.  (Under a parent U of its own it holds inv(U) R B.)
    A companion that was under other transforms, C, gets a transform inv(B) C of its own below the output.
    """

    def __init__(self, request, change):
        moving = request.movingVolume
        self.before = scene.matrixToWorld(moving.GetParentTransformNode())
        if request.outputTransform is None:
            self.transformNode = change.addNode(
                "vtkMRMLLinearTransformNode",
                _("{moving} to {fixed}").format(moving=moving.GetName(), fixed=request.fixedVolume.GetName()),
            )
        else:
            self.transformNode = request.outputTransform
            change.remember(self.transformNode)
        self._parentFromWorld = np.linalg.inv(scene.matrixToWorld(self.transformNode.GetParentTransformNode()))
        companions = [node for node in request.alsoMove if node is not moving]
        places = [self._place(node, change) for node in companions]
        self.move(np.eye(4))  # nothing moves yet: R is the identity
        change.setParent(moving, self.transformNode)
        for node, place in zip(companions, places):
            change.setParent(node, place)

    def _place(self, node, change):
        """The transform that a companion has to be under, now that the moving volume is not yet."""
        parent = node.GetParentTransformNode()
        offset = np.linalg.inv(self.before) @ scene.matrixToWorld(parent)
        if np.allclose(offset, np.eye(4), atol=1e-9):
            return self.transformNode
        if (
            parent is not None
            and parent.GetParentTransformNode() is self.transformNode
            and np.allclose(offset, slicer.util.arrayFromTransformMatrix(parent), atol=1e-9)
        ):
            return parent  # it follows already, from an earlier run
        own = change.addNode("vtkMRMLLinearTransformNode", _("{name} before registration").format(name=node.GetName()))
        slicer.util.updateTransformMatrixFromArray(own, offset)
        change.setParent(own, self.transformNode)
        return own

    def after(self, matrix):
        """From the moving volume's own coordinates to the world, once `matrix` is applied."""
        return np.asarray(matrix, dtype=float) @ self.before

    def move(self, matrix):
        self.matrix = np.asarray(matrix, dtype=float)
        slicer.util.updateTransformMatrixFromArray(self.transformNode, self._parentFromWorld @ self.after(matrix))
