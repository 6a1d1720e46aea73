"""Nodes that serve the views only: people do not see them in lists, and they are not saved with the scene."""

from __future__ import annotations

import slicer
import vtk

from . import resampling
from .change import removeNode


def hiddenNode(className, name):
    """A new node that is in no list and is not saved; not in the scene yet."""
    node = slicer.mrmlScene.CreateNodeByClass(className)
    node.UnRegister(None)
    node.SetName(name)
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    return node


def hiddenCopy(source, name, header=None):
    """A hidden volume with the voxels of another (shared, not copied), shown alike, under no transform; in the scene.

    :param header: 4x4, voxel to the volume's own coordinates, in place of what the source says now.
    """
    node = hiddenNode("vtkMRMLScalarVolumeNode", name)
    matrix = vtk.vtkMatrix4x4()
    if header is None:
        source.GetIJKToRASMatrix(matrix)
    else:
        matrix.DeepCopy([float(value) for line in header for value in line])
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(source.GetImageData())
    slicer.mrmlScene.AddNode(node)
    display = hiddenNode("vtkMRMLScalarVolumeDisplayNode", name)
    slicer.mrmlScene.AddNode(display)
    original = source.GetScalarVolumeDisplayNode()
    if original is not None:
        display.SetAndObserveColorNodeID(original.GetColorNodeID())
        display.SetInterpolate(original.GetInterpolate())
    node.SetAndObserveDisplayNodeID(display.GetID())
    resampling.copyWindow(source, node)
    return node


def ownTransform(node, name):
    """Put a hidden volume under a new hidden transform, which goes with it; return that."""
    transform = hiddenNode("vtkMRMLLinearTransformNode", name)
    slicer.mrmlScene.AddNode(transform)
    node.SetNodeReferenceID("ownTransform", transform.GetID())
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def removeHidden(node):
    """Take a hidden volume out of the scene, with its display node and its own transform."""
    if node is None or node.GetScene() is None:
        return
    helpers = [node.GetDisplayNode(), node.GetNodeReference("ownTransform")]
    # First the node: a view that shows a volume without a display node would make it a new one.
    removeNode(node)
    for helper in helpers:
        if helper is not None and helper.GetHideFromEditors() and not helper.GetSaveWithScene():
            removeNode(helper)
