"""Between MRML nodes and the core: what can be registered, and as what the core takes it."""

from __future__ import annotations

import os

import slicer
import vtk
from slicer.i18n import tr as _

from . import engine
from .masks import coreMask as coreMask
from .places import isUnder as isUnder
from .places import matrixToWorld as matrixToWorld
from .places import transformProblem as transformProblem
from .places import voxelToOwn as voxelToOwn
from .places import voxelToWorld as voxelToWorld
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
        return _(
            "“{name}” is a label volume: register the image it was drawn on, and check the labels under “Also move”."
        ).format(name=name)
    if node.IsA("vtkMRMLDiffusionWeightedVolumeNode") or node.IsA("vtkMRMLMultiVolumeNode"):
        return _(
            "“{name}” holds many volumes (4D): extract one of them, such as the baseline, and register that."
        ).format(name=name)
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        return _("“{name}” is not a scalar volume.").format(name=name)
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        return _("“{name}” holds no image.").format(name=name)
    if node.IsA("vtkMRMLDiffusionTensorVolumeNode"):
        return _("“{name}” is a tensor volume: register a scalar volume made from it, such as its trace.").format(
            name=name
        )
    if image.GetNumberOfScalarComponents() != 1:
        return _(
            "“{name}” is a vector (color) volume with {count} components: convert it to a scalar volume with the "
            "“Vector to Scalar Volume” module first."
        ).format(name=name, count=image.GetNumberOfScalarComponents())
    return transformProblem(node)


def sequenceNote(node) -> str:
    """One sentence if the volume shows a frame of a sequence, or ""."""
    for browser in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"):
        if browser.GetSequenceNode(node) is not None:
            return _(
                "“{name}” shows one frame of a sequence: the frame shown now was registered, and the transform "
                "moves every frame."
            ).format(name=node.GetName())
    return ""


def coreVolume(volumeNode, role):
    """The volume as the core takes it, where it is seen; raises Problem or the core's InputError."""
    problem = volumeProblem(volumeNode, role)
    if problem:
        raise Problem(problem)
    return _coreVolume(volumeNode)


def _coreVolume(volumeNode):
    data = slicer.util.arrayFromVolume(volumeNode).transpose(2, 1, 0)  # Slicer's arrays are k, j, i
    return engine.volume(
        data, voxelToWorld(volumeNode), volumeNode.GetName(), sourceFile(volumeNode), headerWarnings(volumeNode)
    )


def headerWarnings(node) -> tuple:
    """Sentences about what the header of the file of a volume or a sequence contradicts or leaves open."""
    path = sourceFile(node)
    return engine.headerWarnings(path) if path else ()


def sourceFile(node):
    """Path of the one file that a volume or a sequence was read from and still is equal to, or None."""
    storage = node.GetStorageNode()
    if storage is None or node.GetModifiedSinceRead() or storage.GetNumberOfFileNames() > 1:
        return None
    path = storage.GetFullNameFromFileName()
    return path if path and os.path.isfile(path) else None


def transformables(exclude=()):
    """Nodes that can be moved along: segmentations, models, markups, volumes."""
    excluded = {id(node) for node in exclude}
    return [
        node
        for className in ("vtkMRMLSegmentationNode", "vtkMRMLModelNode", "vtkMRMLMarkupsNode", "vtkMRMLVolumeNode")
        for node in slicer.util.getNodesByClass(className)
        if id(node) not in excluded and not node.GetHideFromEditors()
    ]


def movedBy(transformNode):
    """What people see that the transform moves, directly or through others: no transforms, nothing hidden."""
    return [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLTransformableNode")
        if not node.IsA("vtkMRMLTransformNode") and not node.GetHideFromEditors() and isUnder(node, transformNode)
    ]


def belongsTo(node, volumeNode) -> bool:
    """Whether a node seems to be of the same scan: same study or folder, same parent transform, drawn on the volume."""
    parent = volumeNode.GetParentTransformNode()
    if parent is not None and node.GetParentTransformNode() is parent:
        return True
    if node.IsA("vtkMRMLSegmentationNode"):
        role = node.GetReferenceImageGeometryReferenceRole()
        if node.GetNodeReference(role) is volumeNode:
            return True
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    items = [hierarchy.GetItemByDataNode(each) for each in (node, volumeNode)] if hierarchy is not None else []
    if not items or hierarchy.GetInvalidItemID() in items:
        return False
    parents = [hierarchy.GetItemParent(item) for item in items]
    return parents[0] == parents[1] != hierarchy.GetSceneItemID() or parents[0] == items[1]


def folders():
    """Folders, studies and subjects of the subject hierarchy that hold volumes: [(name, [volume nodes])]."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return []
    found = []
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    for index in range(items.GetNumberOfIds()):
        item = items.GetId(index)
        if hierarchy.GetItemDataNode(item) is not None:
            continue
        below = vtk.vtkIdList()
        hierarchy.GetItemChildren(item, below, True)
        nodes = [hierarchy.GetItemDataNode(below.GetId(i)) for i in range(below.GetNumberOfIds())]
        volumes = [node for node in nodes if node is not None and not volumeProblem(node, MOVING)]
        if volumes:
            found.append((hierarchy.GetItemName(item), volumes))
    return found
