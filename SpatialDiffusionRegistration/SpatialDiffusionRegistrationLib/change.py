"""Changes of the scene that can be undone."""

from __future__ import annotations

import slicer
import vtk

from .views import ViewState, viewsOf

REPORT_ATTRIBUTE = "SpatialDiffusionRegistration.Report"
"""Attribute of an output transform that holds the report of its registration (JSON)."""
RESAMPLED_ATTRIBUTE = "SpatialDiffusionRegistration.Resampled"
"""Attribute of a volume that this module made by resampling, so that it may be filled again unasked."""


def isAlive(node) -> bool:
    return node is not None and node.GetScene() is not None


def removeNode(node):
    if isAlive(node):
        slicer.mrmlScene.RemoveNode(node)


def removeWithHelpers(node):
    """Take a node out of the scene, with its display and storage nodes."""
    if not isAlive(node):
        return
    helpers = []
    if node.IsA("vtkMRMLDisplayableNode"):
        helpers += [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        helpers += [node.GetNthStorageNode(i) for i in range(node.GetNumberOfStorageNodes())]
    slicer.mrmlScene.RemoveNode(node)
    for helper in helpers:
        removeNode(helper)


class SceneChange:
    """The changes of one run; `undo` puts back exactly what was there."""

    def __init__(self):
        self._undo, self._nodes = [], []

    def nodes(self):
        """The nodes that were changed or added."""
        return list(self._nodes)

    def addNode(self, className, name):
        """Add a node; its display and storage nodes go with it."""
        node = slicer.mrmlScene.CreateNodeByClass(className)
        node.UnRegister(None)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
        slicer.mrmlScene.AddNode(node)
        self._nodes.append(node)
        self._undo.append(lambda: removeWithHelpers(node))
        return node

    def onUndo(self, undo):
        """Something else that `undo` is to do, before what was done earlier is undone."""
        self._undo.append(undo)

    def adopt(self, node):
        """Take a node that somebody else added as added by this change."""
        self._nodes.append(node)
        self._undo.append(lambda: removeWithHelpers(node))

    def setParent(self, node, transformNode):
        self._nodes.append(node)
        before = node.GetParentTransformNode()
        if before is transformNode:
            return

        def undo():
            if isAlive(node):
                node.SetAndObserveTransformNodeID(before.GetID() if isAlive(before) else None)

        self._undo.append(undo)
        node.SetAndObserveTransformNodeID(transformNode.GetID() if transformNode is not None else None)

    def remember(self, transformNode):
        """Keep a transform's matrix, references and attributes, to be put back by `undo`."""
        matrix = slicer.util.arrayFromTransformMatrix(transformNode).copy()
        roles = (transformNode.GetMovingNodeReferenceRole(), transformNode.GetFixedNodeReferenceRole())
        references = [(role, transformNode.GetNodeReferenceID(role)) for role in roles]
        report = transformNode.GetAttribute(REPORT_ATTRIBUTE)

        def undo():
            if isAlive(transformNode):
                slicer.util.updateTransformMatrixFromArray(transformNode, matrix)
                for role, nodeID in references:
                    transformNode.SetNodeReferenceID(role, nodeID)
                transformNode.SetAttribute(REPORT_ATTRIBUTE, report)

        self._nodes.append(transformNode)
        self._undo.append(undo)

    def rememberVolume(self, node):
        """Keep a volume's voxels, header, place and display, to be put back by `undo`."""
        image, transformID = node.GetImageData(), node.GetTransformNodeID()
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        attribute = node.GetAttribute(RESAMPLED_ATTRIBUTE)
        display = node.GetScalarVolumeDisplayNode()
        window = display and (display.GetAutoWindowLevel(), display.GetWindow(), display.GetLevel())

        def undo():
            if not isAlive(node):
                return
            if display is None:
                removeNode(node.GetDisplayNode())
            elif isAlive(display):
                display.SetAutoWindowLevel(window[0])
                display.SetWindowLevel(*window[1:])
            node.SetAndObserveImageData(image)
            node.SetIJKToRASMatrix(matrix)
            node.SetAndObserveTransformNodeID(transformID)
            node.SetAttribute(RESAMPLED_ATTRIBUTE, attribute)

        self._nodes.append(node)
        self._undo.append(undo)

    def showOver(self, fixedNode, movingNode, opacity=0.5):
        """Show `movingNode` over `fixedNode` in the slice views that show the pair; one that showed the fixed volume
        already keeps its zoom and position."""
        views = viewsOf(fixedNode, movingNode)
        states = [ViewState.of(view) for view in views]

        def undo():
            for state in states:
                state.restore()

        self._undo.append(undo)
        for view in views:
            wasFixed = view.composite.GetBackgroundVolumeID() == fixedNode.GetID()
            view.setLayers(fixedNode, movingNode, opacity)
            if not wasFixed:
                view.fit()

    def undo(self):
        while self._undo:
            self._undo.pop()()
