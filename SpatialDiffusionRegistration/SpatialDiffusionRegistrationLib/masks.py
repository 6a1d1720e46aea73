"""Masks: label volumes, segmentations or one of their segments, and ROIs, as the core takes them.  No node is added."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from . import engine, places, resampling
from .problem import Problem


def segments(node) -> list:
    """[(ID, name)] of the segments of a segmentation; none for any other node."""
    if node is None or not node.IsA("vtkMRMLSegmentationNode"):
        return []
    segmentation = node.GetSegmentation()
    ids = vtk.vtkStringArray()
    segmentation.GetSegmentIDs(ids)
    keys = [ids.GetValue(i) for i in range(ids.GetNumberOfValues())]
    return [(key, segmentation.GetSegment(key).GetName()) for key in keys]


def segmentID(node, nameOrID) -> str:
    """The ID of a segment that is named by its ID or its name; "" for ""."""
    if not nameOrID:
        return ""
    known = segments(node)
    found = [key for key, name in known if nameOrID == key] or [key for key, name in known if nameOrID == name]
    if not found:
        raise Problem(
            _("There is no segment “{segment}”: choose one of {names}.").format(
                segment=nameOrID, names=", ".join(f"“{name}”" for _key, name in known) or _("none")
            )
        )
    return found[0]


def problem(node, segmentID="") -> str:
    """One sentence on why a node can not be a mask, or ""; quick, so it can not know whether voxels are inside."""
    if node is None:
        return ""
    name = node.GetName()
    if node.IsA("vtkMRMLSegmentationNode"):
        known = [key for key, _name in segments(node)]
        if not known:
            return _("The segmentation “{name}” has no segments: draw one, or choose no mask.").format(name=name)
        if segmentID and segmentID not in known:
            return _("The segment chosen in “{name}” is not there any more: choose another.").format(name=name)
    elif node.IsA("vtkMRMLVolumeNode"):
        image = node.GetImageData()
        if image is None or image.GetPointData().GetScalars() is None:
            return _("The mask “{name}” is empty.").format(name=name)
        if image.GetNumberOfScalarComponents() != 1:
            return _("The mask “{name}” has more than one value in a voxel: choose a label volume.").format(name=name)
    elif node.IsA("vtkMRMLMarkupsROINode"):
        if min(node.GetSize()) <= 0:
            return _("The ROI “{name}” has no size: draw it in the views, or choose no mask.").format(name=name)
    else:
        return _("“{name}” can not be a mask: choose a segmentation, a label volume or an ROI.").format(name=name)
    return places.transformProblem(node)


def coreMask(node, volumeNode, segmentID=""):
    """A mask as a core Volume of 0 and 1, None for None; a segmentation's segments together, or the one chosen.

    Segments and ROIs are drawn on the grid of `volumeNode`, which they mask.
    """
    if node is None:
        return None
    sentence = problem(node, segmentID)
    if sentence:
        raise Problem(sentence)
    if node.IsA("vtkMRMLVolumeNode"):
        inside, place = resampling.toArray(node.GetImageData()) > 0, places.voxelToWorld(node)
    else:
        draw = _roi if node.IsA("vtkMRMLMarkupsROINode") else _segments
        inside, place = draw(node, volumeNode, segmentID), places.voxelToWorld(volumeNode)
    if not inside.any():
        if node.IsA("vtkMRMLVolumeNode"):
            raise Problem(_("The mask “{name}” is empty.").format(name=node.GetName()))
        raise Problem(
            _("The mask “{name}” is empty or lies outside “{volume}”.").format(
                name=node.GetName(), volume=volumeNode.GetName()
            )
        )
    return engine.volume(inside.astype(np.uint8), place, node.GetName())


def _roi(node, volumeNode, _segmentID):
    """A box is one voxel as large as itself."""
    voxel = vtk.vtkImageData()
    voxel.SetDimensions(1, 1, 1)
    voxel.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    voxel.GetPointData().GetScalars().Fill(1)
    place = slicer.util.arrayFromVTKMatrix(node.GetObjectToWorldMatrix()) @ np.diag([*node.GetSize(), 1.0])
    return _drawn(voxel, place, volumeNode) > 0


def _segments(node, volumeNode, segmentID):
    inside = np.zeros(volumeNode.GetImageData().GetDimensions(), bool)
    for key in [segmentID] if segmentID else [key for key, _name in segments(node)]:
        labels, value = _labelmap(node, key)
        if labels is not None and labels.GetNumberOfPoints() > 0:
            matrix = vtk.vtkMatrix4x4()
            labels.GetImageToWorldMatrix(matrix)
            place = places.matrixToWorld(node.GetParentTransformNode()) @ slicer.util.arrayFromVTKMatrix(matrix)
            drawn = _drawn(labels, place, volumeNode)
            inside |= drawn > 0 if value is None else drawn == value
    return inside


def _labelmap(node, key):
    """A segment's label map in the segmentation's own coordinates, and its value there (None: any but 0).

    Several segments may share one label map.  One that has none, as it came as a surface, is converted in a copy.
    """
    segment, kind = node.GetSegmentation().GetSegment(key), "Binary labelmap"
    labels = segment.GetRepresentation(kind)
    if labels is not None:
        return labels, segment.GetLabelValue()
    copy = slicer.vtkSegmentation()
    copy.SetSourceRepresentationName(node.GetSegmentation().GetSourceRepresentationName())
    copy.CopySegmentFromSegmentation(node.GetSegmentation(), key)
    if not copy.CreateRepresentation(kind):
        raise Problem(
            _("The segment “{segment}” of “{name}” could not be drawn as voxels.").format(
                segment=segment.GetName(), name=node.GetName()
            )
        )
    return copy.GetSegment(key).GetRepresentation(kind), None


def _drawn(image, place, volumeNode):
    on = resampling.reslice(
        image, place, volumeNode.GetImageData().GetExtent(), places.voxelToWorld(volumeNode), resampling.NEAREST
    )
    return resampling.toArray(on)
