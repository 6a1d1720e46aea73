"""Where nodes are seen: from their own coordinates through the transforms that they are under.

All matrices are 4x4 float64 numpy arrays in RAS millimeters.  "World" is what the views show: a node's own coordinates
carried through all its parent transforms.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _


def transformProblem(node) -> str:
    """One sentence if the node sits under a transform that is not linear, or ""."""
    parent = node.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        return _(
            "“{name}” is under the nonlinear transform “{transform}”: harden that transform first, or take the "
            "volume out of it."
        ).format(name=node.GetName(), transform=parent.GetName())
    return ""


def matrixToWorld(transformNode) -> np.ndarray:
    """From the coordinates below a (linear) transform node to the world; the identity for None."""
    matrix = vtk.vtkMatrix4x4()
    if transformNode is not None:
        transformNode.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def voxelToOwn(volumeNode) -> np.ndarray:
    """From voxel i, j, k to the volume's own coordinates, as its header says; 4x4."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def voxelToWorld(volumeNode) -> np.ndarray:
    """From voxel i, j, k to where the views show the voxel."""
    return matrixToWorld(volumeNode.GetParentTransformNode()) @ voxelToOwn(volumeNode)


def isUnder(node, transformNode) -> bool:
    """Whether the transform moves the node, directly or through others."""
    parent = node.GetParentTransformNode()
    while parent is not None:
        if parent is transformNode:
            return True
        parent = parent.GetParentTransformNode()
    return False
