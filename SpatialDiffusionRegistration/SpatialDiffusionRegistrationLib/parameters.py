"""Everything the window remembers; it is saved with the scene."""

# No `from __future__ import annotations`: the wrapper of older Slicers reads the types themselves.
import enum
import json
from typing import Annotated, Union

from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLLinearTransformNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLSequenceNode,
    vtkMRMLTransformNode,
)
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from . import engine, resampling

# The names of the enumerations' members are written into scenes: never rename them.


class TransformType(enum.Enum):
    AFFINE = "affine"
    SIMILARITY = "similarity"
    RIGID = "rigid"

    def label(self):
        return {
            "affine": _("Affine: rotation, shift, scales and shear"),
            "similarity": _("Similarity: rotation, shift and one scale"),
            "rigid": _("Rigid: rotation and shift"),
        }[self.value]


class Sampler(enum.Enum):
    AUTOMATIC = None
    FAST = "fast"
    REFERENCE = "reference"

    def label(self):
        return {
            None: _("Automatic (as the model was made for)"),
            "fast": _("Fast: search, few steps, polish"),
            "reference": _("As published: every step, no search"),
        }[self.value]


class Polish(enum.Enum):
    AUTOMATIC = None
    ON = True
    OFF = False

    def label(self):
        return {None: _("Automatic"), True: _("On"), False: _("Off")}[self.value]


class Device(enum.Enum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"

    def label(self):
        return {
            "auto": _("Automatic"),
            "cpu": _("CPU"),
            "cuda": _("NVIDIA graphics card (CUDA)"),
            "mps": _("Apple graphics (MPS)"),
        }[self.value]


class SequenceTransform(enum.Enum):
    RIGID = "rigid"
    AFFINE = "affine"

    def label(self):
        return {
            "rigid": _("Rigid: frames of one subject"),
            "affine": _("Affine: also eddy currents, or a subject that is squeezed"),
        }[self.value]


class Interpolation(enum.Enum):
    LINEAR = resampling.LINEAR
    NEAREST = resampling.NEAREST
    CUBIC = resampling.CUBIC

    def label(self):
        return {
            resampling.LINEAR: _("Linear"),
            resampling.NEAREST: _("Nearest neighbor (labels)"),
            resampling.CUBIC: _("Cubic"),
        }[self.value]


ALSO_MOVE_ROLE = "alsoMove"
BATCH_VOLUME_ROLE = "batchVolume"


@parameterNodeWrapper
class SpatialDiffusionRegistrationParameterNode:
    """
    movingVolume, fixedVolume - What is registered, and to what.
    movingModality, fixedModality - Keys of the core's modality table; an empty fixed one means "as the moving volume".
    outputTransform - Receives the transform from moving to fixed; None makes a new one.
    outputVolume - If set, receives the moving volume resampled on the grid of the fixed one.
    initialTransform, movingMask, fixedMask - Optional helps.
    movingSegment, fixedSegment - ID of the one segment of a mask that counts; empty for all of them.
    movingLandmarks, fixedLandmarks - Points whose distances before and after are told.
    interpolation - Of the resampled volume.
    modelName - Name or file of a trained model; empty leaves the choice to the core.
    steps, threads - 0 leaves the choice to the core.
    search - Whether the starting pose is looked for among all rotations.
    livePreview - Whether the moving volume moves after every step.
    sequence, referenceFrame - Whose frames are laid on one of them, numbered from 1; 0 leaves the choice to the core.
    batchFiles - Files of the batch (JSON); its volumes of the scene are node references.
    """

    movingVolume: vtkMRMLScalarVolumeNode
    fixedVolume: vtkMRMLScalarVolumeNode
    movingModality: str = "auto"
    fixedModality: str = ""
    transformType: TransformType = TransformType.AFFINE
    outputTransform: Union[vtkMRMLLinearTransformNode, vtkMRMLTransformNode, None] = None
    outputVolume: vtkMRMLScalarVolumeNode
    initialTransform: Union[vtkMRMLLinearTransformNode, vtkMRMLTransformNode, None] = None
    movingMask: Union[vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode, vtkMRMLMarkupsROINode, None] = None
    fixedMask: Union[vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode, vtkMRMLMarkupsROINode, None] = None
    movingSegment: str = ""
    fixedSegment: str = ""
    movingLandmarks: vtkMRMLMarkupsFiducialNode
    fixedLandmarks: vtkMRMLMarkupsFiducialNode
    interpolation: Interpolation = Interpolation.LINEAR
    livePreview: bool = True
    modelName: str = ""
    sampler: Sampler = Sampler.AUTOMATIC
    search: bool = True
    steps: Annotated[int, WithinRange(0, 1000)] = 0
    polish: Polish = Polish.AUTOMATIC
    device: Device = Device.AUTO
    threads: Annotated[int, WithinRange(0, 256)] = 0
    seed: Annotated[int, WithinRange(0, 2147483647)] = 0
    sequence: vtkMRMLSequenceNode
    referenceFrame: Annotated[int, WithinRange(0, 1000000)] = 0
    sequenceTransform: SequenceTransform = SequenceTransform.RIGID
    batchFiles: str = "[]"
    batchOutputFolder: str = ""
    batchKeepVolumes: bool = False


def settings(parameters, device=None) -> engine.Settings:
    """The core's settings, not checked yet; `device` overrides the parameter."""
    options = {
        "modality": parameters.movingModality,
        "fixed_modality": parameters.fixedModality or None,
        "transform": parameters.transformType.value,
        "model": parameters.modelName or None,
        "sampler": parameters.sampler.value,
        "steps": parameters.steps or None,
        "search": parameters.search,
        "polish": parameters.polish.value,
        "device": device or parameters.device.value,
        "seed": parameters.seed,
    }
    return engine.Settings(options, parameters.threads or None)


def nodeList(parameters, role):
    """The nodes that the parameter node refers to under a role."""
    node = parameters.parameterNode
    found = [node.GetNthNodeReference(role, i) for i in range(node.GetNumberOfNodeReferences(role))]
    return [n for n in found if n is not None]


def setNodeList(parameters, role, nodes):
    node = parameters.parameterNode
    if [each.GetID() for each in nodes] == [each.GetID() for each in nodeList(parameters, role)]:
        return
    modifying = node.StartModify()
    node.RemoveNodeReferenceIDs(role)
    for each in nodes:
        node.AddNodeReferenceID(role, each.GetID())
    node.EndModify(modifying)


def batchFiles(parameters):
    try:
        return [str(path) for path in json.loads(parameters.batchFiles)]
    except ValueError:
        return []


def setBatchFiles(parameters, paths):
    parameters.batchFiles = json.dumps([str(path) for path in paths])


NODES = (
    "movingVolume",
    "fixedVolume",
    "outputTransform",
    "outputVolume",
    "initialTransform",
    "movingMask",
    "fixedMask",
    "movingLandmarks",
    "fixedLandmarks",
    "sequence",
)
"""Parameters that are nodes."""


def release(parameters, node):
    """Choose no node wherever `node` is chosen.

    To be called before it leaves the scene: then a node selector makes another one of its rows the current one, and the
    person's transform would become the output.
    """
    for name in NODES:
        if getattr(parameters, name) is node:
            setattr(parameters, name, None)
