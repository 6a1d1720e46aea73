"""Between MRML nodes and the core: where things are seen, and changes that can be undone.

All matrices are 4x4 float64 numpy arrays in RAS millimeters.  "World" is what the views show: a node's own coordinates
carried through all its parent transforms.
"""
from __future__ import annotations

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from . import engine
from .problem import Problem

MOVING, FIXED = "moving", "fixed"


# What can be registered

def volumeProblem(node, role) -> str:
    """One sentence on why a volume node can not be registered, or ""."""
    labels = {MOVING: _("moving"), FIXED: _("fixed")}
    if node is None:
        return _("Select a {role} volume.").format(role=labels[role])
    name = node.GetName()
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("“{name}” is a label volume: register the image it was drawn on, and check the labels under "
                 "“Also move”.").format(name=name)
    if node.IsA("vtkMRMLDiffusionWeightedVolumeNode") or node.IsA("vtkMRMLMultiVolumeNode"):
        return _("“{name}” holds many volumes (4D): extract one of them, such as the baseline, and register that."
                 ).format(name=name)
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        return _("“{name}” is not a scalar volume.").format(name=name)
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        return _("“{name}” holds no image.").format(name=name)
    if node.IsA("vtkMRMLDiffusionTensorVolumeNode"):
        return _("“{name}” is a tensor volume: register a scalar volume made from it, such as its trace."
                 ).format(name=name)
    if image.GetNumberOfScalarComponents() != 1:
        return _("“{name}” is a vector (color) volume with {count} components: convert it to a scalar volume with the "
                 "“Vector to Scalar Volume” module first.").format(name=name, count=image.GetNumberOfScalarComponents())
    return transformProblem(node)


def transformProblem(node) -> str:
    """One sentence if the node sits under a transform that is not linear, or ""."""
    parent = node.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        return _("“{name}” is under the nonlinear transform “{transform}”: harden that transform first, or take the "
                 "volume out of it.").format(name=node.GetName(), transform=parent.GetName())
    return ""


def sequenceNote(node) -> str:
    """One sentence if the volume shows a frame of a sequence, or ""."""
    for browser in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"):
        if browser.GetSequenceNode(node) is not None:
            return _("“{name}” shows one frame of a sequence: the frame shown now was registered, and the transform "
                     "moves every frame.").format(name=node.GetName())
    return ""


# Where things are

def matrixToWorld(transformNode) -> np.ndarray:
    """From the coordinates below a (linear) transform node to the world; the identity for None."""
    matrix = vtk.vtkMatrix4x4()
    if transformNode is not None:
        transformNode.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def voxelToWorld(volumeNode) -> np.ndarray:
    """From voxel i, j, k to where the views show the voxel."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return matrixToWorld(volumeNode.GetParentTransformNode()) @ slicer.util.arrayFromVTKMatrix(matrix)


def coreVolume(volumeNode, role):
    """The volume as the core takes it, where it is seen; raises Problem or the core's InputError."""
    problem = volumeProblem(volumeNode, role)
    if problem:
        raise Problem(problem)
    return _coreVolume(volumeNode)


def _coreVolume(volumeNode):
    data = slicer.util.arrayFromVolume(volumeNode).transpose(2, 1, 0)  # Slicer's arrays are k, j, i
    return engine.volume(data, voxelToWorld(volumeNode), volumeNode.GetName())


def coreMask(maskNode, volumeNode):
    """A label volume or segmentation as a core Volume of 0 and 1; None for None.

    Segments are all taken together, drawn on the grid of `volumeNode`, which they mask.
    """
    if maskNode is None:
        return None
    problem = transformProblem(maskNode)
    if problem:
        raise Problem(problem)
    if maskNode.IsA("vtkMRMLVolumeNode"):
        mask = _coreVolume(maskNode)
    else:
        mask = _segmentsOnGrid(maskNode, volumeNode)
    inside = (mask.data > 0).astype(np.uint8)
    if not inside.any():
        raise Problem(_("The mask “{name}” is empty.").format(name=maskNode.GetName()))
    return engine.volume(inside, mask.voxel_to_ras, maskNode.GetName())


def _segmentsOnGrid(segmentationNode, volumeNode):
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    try:
        segments = vtk.vtkStringArray()
        segmentationNode.GetSegmentation().GetSegmentIDs(segments)
        if not slicer.modules.segmentations.logic().ExportSegmentsToLabelmapNode(
                segmentationNode, segments, labels, volumeNode):
            raise Problem(_("The segments of “{name}” could not be drawn on the grid of “{volume}”.").format(
                name=segmentationNode.GetName(), volume=volumeNode.GetName()))
        data = slicer.util.arrayFromVolume(labels).transpose(2, 1, 0).copy()
        return engine.volume(data, voxelToWorld(volumeNode), segmentationNode.GetName())
    finally:
        display = labels.GetDisplayNode()
        if display is not None and display.GetColorNode() is not None:
            slicer.mrmlScene.RemoveNode(display.GetColorNode())
        slicer.mrmlScene.RemoveNode(labels)


def isUnder(node, transformNode) -> bool:
    """Whether the transform moves the node, directly or through others."""
    parent = node.GetParentTransformNode()
    while parent is not None:
        if parent is transformNode:
            return True
        parent = parent.GetParentTransformNode()
    return False


def transformables(exclude=()):
    """Nodes that can be moved along: segmentations, models, markups, volumes."""
    found = []
    for className in ("vtkMRMLSegmentationNode", "vtkMRMLModelNode", "vtkMRMLMarkupsNode", "vtkMRMLVolumeNode"):
        for node in slicer.util.getNodesByClass(className):
            if node not in exclude and node not in found and not node.GetHideFromEditors():
                found.append(node)
    return found


# Slice views

def sliceLayers():
    """What each slice view shows now: [(composite node, background ID, foreground ID, opacity)]."""
    return [(node, node.GetBackgroundVolumeID(), node.GetForegroundVolumeID(), node.GetForegroundOpacity())
            for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")]


def restoreSliceLayers(layers):
    for node, background, foreground, opacity in layers:
        node.SetBackgroundVolumeID(background)
        node.SetForegroundVolumeID(foreground)
        node.SetForegroundOpacity(opacity)


class SceneChange:
    """The changes of one run; `undo` puts back exactly what was there."""

    def __init__(self):
        self._undo = []

    def _alive(self, node):
        return node is not None and node.GetScene() is not None

    def addNode(self, className, name, hidden=False):
        node = slicer.mrmlScene.CreateNodeByClass(className)
        node.UnRegister(None)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
        if hidden:
            node.SetHideFromEditors(True)
            node.SetSaveWithScene(False)
        slicer.mrmlScene.AddNode(node)
        self._undo.append(lambda: self._alive(node) and slicer.mrmlScene.RemoveNode(node))
        return node

    def setParent(self, node, transformNode):
        before = node.GetParentTransformNode()
        if before is transformNode:
            return

        def undo():
            if self._alive(node):
                node.SetAndObserveTransformNodeID(before.GetID() if self._alive(before) else None)

        self._undo.append(undo)
        node.SetAndObserveTransformNodeID(transformNode.GetID() if transformNode is not None else None)

    def remember(self, transformNode):
        """Keep a transform's matrix, references and attributes, to be put back by `undo`."""
        matrix = slicer.util.arrayFromTransformMatrix(transformNode).copy()
        roles = (transformNode.GetMovingNodeReferenceRole(), transformNode.GetFixedNodeReferenceRole())
        references = [(role, transformNode.GetNodeReferenceID(role)) for role in roles]
        attributes = {name: transformNode.GetAttribute(name) for name in (REPORT_ATTRIBUTE,)}

        def undo():
            if self._alive(transformNode):
                slicer.util.updateTransformMatrixFromArray(transformNode, matrix)
                for role, nodeID in references:
                    transformNode.SetNodeReferenceID(role, nodeID)
                for name, value in attributes.items():
                    transformNode.SetAttribute(name, value)

        self._undo.append(undo)

    def showOver(self, fixedNode, movingNode, opacity=0.5):
        """Show `movingNode` over `fixedNode` in the slice views."""
        layers = sliceLayers()
        self._undo.append(lambda: restoreSliceLayers(layers))
        slicer.util.setSliceViewerLayers(background=fixedNode, foreground=movingNode, foregroundOpacity=opacity,
                                         fit=True)

    def undo(self):
        while self._undo:
            self._undo.pop()()


REPORT_ATTRIBUTE = "SpatialDiffusionRegistration.Report"
"""Attribute of an output transform that holds the report of its registration (JSON)."""
