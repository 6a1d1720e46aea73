"""Volumes on other grids, by VTK: quick, and the scalar type is kept."""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from . import engine, places
from .cursor import waitCursor
from .problem import Problem

LINEAR, NEAREST, CUBIC = "linear", "nearest", "cubic"


def known(interpolation) -> str:
    """The name of an interpolation, if it is one; else raises Problem."""
    if interpolation not in (LINEAR, NEAREST, CUBIC):
        raise Problem(_("Unknown interpolation “{name}”: choose linear, nearest or cubic.").format(name=interpolation))
    return interpolation


def reslice(image, voxelToWorld, extent, gridToWorld, interpolation=LINEAR, background=0.0):
    """The vtkImageData `image` on another grid, with the same scalar type; a vtkImageData of spacing 1 and origin 0.

    :param voxelToWorld: 4x4, from the image's voxel i, j, k to the world in mm.
    :param extent: first and last voxel of the new grid along i, j, k (6 numbers).
    :param gridToWorld: 4x4, from the new grid's voxels to the world in mm.
    :param background: value outside the image (half a voxel around its outermost voxel centers still counts as in).
    """
    plain = vtk.vtkImageData()
    plain.ShallowCopy(image)
    plain.SetSpacing(1, 1, 1)
    plain.SetOrigin(0, 0, 0)
    gridToVoxel = vtk.vtkTransform()
    gridToVoxel.SetMatrix((np.linalg.inv(voxelToWorld) @ gridToWorld).ravel().tolist())
    filter_ = vtk.vtkImageReslice()
    filter_.SetInputData(plain)
    filter_.SetResliceTransform(gridToVoxel)
    filter_.SetOutputExtent(*extent)
    filter_.SetOutputSpacing(1, 1, 1)
    filter_.SetOutputOrigin(0, 0, 0)
    filter_.SetBackgroundLevel(float(background))
    filter_.SetBorder(True)
    {
        LINEAR: filter_.SetInterpolationModeToLinear,
        NEAREST: filter_.SetInterpolationModeToNearestNeighbor,
        CUBIC: filter_.SetInterpolationModeToCubic,
    }[interpolation]()
    filter_.Update()
    return filter_.GetOutput()


def onGridOf(volumeNode, referenceNode, interpolation=LINEAR, matrix=None):
    """A volume as it is seen (moved on by the 4x4 world `matrix`) on the voxels of another as that is seen."""
    place = places.voxelToWorld(volumeNode)
    if matrix is not None:
        place = np.asarray(matrix) @ place
    image = volumeNode.GetImageData()
    return reslice(
        image,
        place,
        referenceNode.GetImageData().GetExtent(),
        places.voxelToWorld(referenceNode),
        interpolation,
        engine.outside(toArray(image)),
    )


def fill(node, image, referenceNode):
    """Give a volume node an image on the grid of the reference volume, under that one's own transforms."""
    matrix = vtk.vtkMatrix4x4()
    referenceNode.GetIJKToRASMatrix(matrix)
    modifying = node.StartModify()
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(image)
    node.SetAndObserveTransformNodeID(referenceNode.GetTransformNodeID())
    node.EndModify(modifying)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()


def copyWindow(sourceNode, node):
    """Show a volume with the window and level of another."""
    source, display = sourceNode.GetScalarVolumeDisplayNode(), node.GetScalarVolumeDisplayNode()
    if source is not None and display is not None:
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(source.GetWindow(), source.GetLevel())


def asShown(image, volumeNode):
    """An image as gray values 0..255 under the volume's window and level."""
    gray = vtk.vtkImageMapToWindowLevelColors()
    gray.SetInputData(image)
    display = volumeNode.GetScalarVolumeDisplayNode()
    if display is not None:
        gray.SetWindow(display.GetWindow())
        gray.SetLevel(display.GetLevel())
    else:
        low, high = image.GetScalarRange()
        gray.SetWindow(high - low)
        gray.SetLevel((high + low) / 2)
    gray.SetOutputFormatToLuminance()
    gray.Update()
    return gray.GetOutput()


SQUARE_MILLIMETERS = 25.0
LEAST_SQUARES, MOST_SQUARES = 4, 12
"""Squares of 25 mm suit heads; small and large volumes have this many along an axis at least and at most."""


def checkerboardImage(movingNode, fixedNode):
    """Gray values on the fixed volume's grid, with squares of either volume as both are seen now."""
    fixed = fixedNode.GetImageData()
    spacing = np.linalg.norm(places.voxelToWorld(fixedNode)[:3, :3], axis=0)
    divisions = [
        int(np.clip(round(size * mm / SQUARE_MILLIMETERS), LEAST_SQUARES, MOST_SQUARES))
        for size, mm in zip(fixed.GetDimensions(), spacing)
    ]
    board = vtk.vtkImageCheckerboard()
    board.SetNumberOfDivisions(divisions)
    board.SetInput1Data(asShown(fixed, fixedNode))
    board.SetInput2Data(asShown(onGridOf(movingNode, fixedNode), movingNode))
    board.Update()
    return board.GetOutput()


def toArray(image) -> np.ndarray:
    """The scalars of a vtkImageData in i, j, k order (a view where possible)."""
    from vtk.util.numpy_support import vtk_to_numpy

    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1]).transpose(2, 1, 0)


def newVolume(className, name):
    """A new volume node, in the scene."""
    return slicer.mrmlScene.AddNewNodeByClass(className, slicer.mrmlScene.GenerateUniqueName(name))


def resampledNode(volume, reference, outputVolume=None, interpolation=None):
    """Put a volume node as it is seen on the grid of another; see SpatialDiffusionRegistrationLogic.resample."""
    labels = volume is not None and volume.IsA("vtkMRMLLabelMapVolumeNode")
    for node in (volume, reference):
        if node is None or node.GetImageData() is None:
            raise Problem(_("There is no image to resample, or none to resample it on."))
        problem = places.transformProblem(node)
        if problem:
            raise Problem(problem)
    if outputVolume in (volume, reference):
        raise Problem(
            _("The resampled volume would overwrite “{name}”: choose another.").format(name=outputVolume.GetName())
        )
    if outputVolume is not None and outputVolume.GetClassName() != volume.GetClassName():
        raise Problem(
            _("The resampled volume can not be put into “{name}”, which is of another kind.").format(
                name=outputVolume.GetName()
            )
        )
    with waitCursor():
        image = onGridOf(
            volume,
            reference,
            known(interpolation or (NEAREST if labels else LINEAR)),
        )
    if outputVolume is None:
        outputVolume = newVolume(volume.GetClassName(), _("{name} resampled").format(name=volume.GetName()))
    fill(outputVolume, image, reference)
    return outputVolume
