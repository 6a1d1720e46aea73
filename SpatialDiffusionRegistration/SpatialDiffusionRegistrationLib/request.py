"""What to register and where to put the result; what is wrong with that, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable

import slicer
from slicer.i18n import tr as _

from . import engine, landmarks, masks, resampling, scene
from .change import RESAMPLED_ATTRIBUTE


@dataclass
class Request:
    """`outputTransform` None makes a new transform; `wantTransform` False leaves the moving volume where it was (then
    `outputVolume` is the only result).  Segments: of a mask that is a segmentation, the ID of one; "" takes all.
    """

    movingVolume: object
    fixedVolume: object
    settings: engine.Settings = field(default_factory=engine.Settings)
    outputTransform: object = None
    outputVolume: object = None
    interpolation: str = resampling.LINEAR
    """Of the resampled volume, whose scalar type is that of the moving volume."""
    alsoMove: tuple = ()
    initialTransform: object = None
    movingMask: object = None
    fixedMask: object = None
    movingSegment: str = ""
    fixedSegment: str = ""
    movingLandmarks: object = None
    fixedLandmarks: object = None
    wantTransform: bool = True
    preview: bool = False
    """Show after every step where the moving volume is by now, over the fixed one."""
    show: bool = False
    """Show the result over the fixed volume in the slice views."""
    beat: Callable | None = None
    """Called often while the core computes; what it raises ends the run."""

    def problem(self) -> str:
        """One sentence on what is missing or can not work, or ""; looks at the nodes only, so it is quick."""
        return _first(
            self._pairProblem,
            self._sceneProblem,
            self.outputProblem,
            self._initialProblem,
            self._maskProblem,
            self._landmarkProblem,
        )

    def outputProblem(self) -> str:
        """As `problem`, of what will be changed."""
        return _first(self._outputTransformProblem, self._outputVolumeProblem, self._companionProblem)

    def _pairProblem(self):
        moving, fixed = self.movingVolume, self.fixedVolume
        if moving is None and fixed is None:
            return _("Select a moving and a fixed volume.")
        sentence = scene.volumeProblem(moving, scene.MOVING) or scene.volumeProblem(fixed, scene.FIXED)
        if not sentence and moving is fixed:
            return _("Select two different volumes: moving and fixed are the same.")
        return sentence

    def _sceneProblem(self):
        gone = next((node for node in self.nodes() if node.GetScene() is not slicer.mrmlScene), None)
        return _("“{name}” is not in the scene: add it first.").format(name=gone.GetName()) if gone is not None else ""

    def _outputTransformProblem(self):
        output = self.outputTransform
        if output is None:
            if not self.wantTransform and self.outputVolume is None:
                return _("Choose an output: a transform, a resampled volume, or both.")
            return ""
        name = output.GetName()
        if not output.IsLinear():
            return _("The output transform “{name}” is nonlinear: choose a linear one or a new one.").format(name=name)
        if scene.isUnder(self.fixedVolume, output):
            return _("The output transform “{name}” also moves the fixed volume: choose another.").format(name=name)
        return scene.transformProblem(output)

    def _outputVolumeProblem(self):
        output = self.outputVolume
        if output is None:
            return ""
        name = output.GetName()
        if output.GetClassName() != "vtkMRMLScalarVolumeNode":
            return _(
                "The resampled volume can not be put into “{name}”, which is not a plain scalar volume: choose another."
            ).format(name=name)
        if output in (self.movingVolume, self.fixedVolume, self.movingMask, self.fixedMask, *self.alsoMove):
            return _("The resampled volume would overwrite “{name}”: choose another.").format(name=name)
        return scene.transformProblem(output)

    def _initialProblem(self):
        initial = self.initialTransform
        if initial is None:
            return ""
        if not initial.IsTransformToWorldLinear():
            return _("The initial transform “{name}” is nonlinear: choose a linear one.").format(name=initial.GetName())
        if scene.isUnder(self.movingVolume, initial):
            return _(
                "The initial transform “{name}” already moves the moving volume, which is registered from "
                "where it is seen: choose none."
            ).format(name=initial.GetName())
        if initial is self.outputTransform:
            return _("“{name}” is both the initial and the output transform: choose another output.").format(
                name=initial.GetName()
            )
        return ""

    def _companionProblem(self):
        if self.fixedVolume in self.alsoMove:
            return _("“{name}” is the fixed volume and can not move along.").format(name=self.fixedVolume.GetName())
        for node in (self.fixedMask, self.fixedLandmarks):
            if node is not None and node in self.alsoMove:
                return _("“{name}” belongs to the fixed volume and can not move along.").format(name=node.GetName())
        return next(filter(None, map(scene.transformProblem, self.alsoMove)), "")

    def _maskProblem(self):
        return masks.problem(self.movingMask, self.movingSegment) or masks.problem(self.fixedMask, self.fixedSegment)

    def _landmarkProblem(self):
        return landmarks.problem(self.movingLandmarks, self.fixedLandmarks)

    def questions(self) -> list:
        """What else the run would change of the person's own, a sentence each: to be confirmed before it starts."""
        found = []
        others = self.foreigners()
        if others:
            found.append(
                _("“{transform}” also moves {others}, which would move with it.").format(
                    transform=self.outputTransform.GetName(), others=named(others)
                )
            )
        output = self.outputVolume
        if output is not None and output.GetImageData() is not None and not output.GetAttribute(RESAMPLED_ATTRIBUTE):
            found.append(_("The image in “{name}” would be replaced.").format(name=output.GetName()))
        return found

    def foreigners(self) -> list:
        """What the chosen output transform moves and that does not belong to this run."""
        output = self.outputTransform
        if output is None:
            return []
        own = (self.movingVolume, *self.alsoMove, self.movingMask, self.movingLandmarks)
        return [node for node in scene.movedBy(output) if node not in own]

    def nodes(self):
        """The nodes that must live until the run ends."""
        return [
            node
            for node in (self.movingVolume, self.fixedVolume, self.outputTransform, self.outputVolume, *self.alsoMove)
            if node is not None
        ]


def _first(*checks) -> str:
    """What the first of some checks has to say that says something, or ""."""
    return next(filter(None, (check() for check in checks)), "")


NAMED_AT_MOST = 4


def named(nodes) -> str:
    """Nodes by name, in quotes; of many the first few and how many more."""
    names = [f"“{node.GetName()}”" for node in nodes[:NAMED_AT_MOST]]
    more = len(nodes) - len(names)
    if more:
        return _("{names} and {count} more").format(names=", ".join(names), count=more)
    return ", ".join(names)
