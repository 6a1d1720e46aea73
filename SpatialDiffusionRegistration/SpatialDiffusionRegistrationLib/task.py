"""One registration from nodes to nodes, as a generator of steps.

The same generator runs behind the Register button (one step per timer tick), in the batch and in scripts.  Closing it
between two steps, or an error at any point, puts the scene back exactly as it was.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import engine, scene
from .problem import Problem
from .result import Result


@dataclass
class Request:
    """What to register and where to put the result.

    `outputTransform` None makes a new transform; `wantTransform` False leaves the moving volume where it was (then
    `outputVolume` is the only result).
    """

    movingVolume: object
    fixedVolume: object
    settings: engine.Settings = field(default_factory=engine.Settings)
    outputTransform: object = None
    outputVolume: object = None
    alsoMove: tuple = ()
    initialTransform: object = None
    movingMask: object = None
    fixedMask: object = None
    wantTransform: bool = True
    preview: bool = False
    """Move the moving volume after every step, and show it over the fixed one."""
    show: bool = False
    """Show the result over the fixed volume in the slice views."""

    def problem(self) -> str:
        """One sentence on what is missing or can not work, or ""; looks at the nodes only, so it is quick."""
        moving, fixed, output = self.movingVolume, self.fixedVolume, self.outputTransform
        if moving is None and fixed is None:
            return _("Select a moving and a fixed volume.")
        for node, role in ((moving, scene.MOVING), (fixed, scene.FIXED)):
            problem = scene.volumeProblem(node, role)
            if problem:
                return problem
        if moving is fixed:
            return _("Select two different volumes: moving and fixed are the same.")
        if output is not None:
            return self._outputProblem(output)
        if self.outputVolume is not None and self.outputVolume in (moving, fixed):
            return _("The resampled volume would overwrite “{name}”: choose another.").format(
                name=self.outputVolume.GetName())
        if not self.wantTransform and self.outputVolume is None:
            return _("Choose an output: a transform, a resampled volume, or both.")
        return self._inputTransformProblem()

    def _outputProblem(self, output):
        name = output.GetName()
        if not output.IsLinear():
            return _("The output transform “{name}” is nonlinear: choose a linear one or a new one.").format(name=name)
        if scene.isUnder(self.fixedVolume, output):
            return _("The output transform “{name}” also moves the fixed volume: choose another.").format(name=name)
        problem = scene.transformProblem(output)
        if problem:
            return problem
        if self.outputVolume is not None and self.outputVolume in (self.movingVolume, self.fixedVolume):
            return _("The resampled volume would overwrite “{name}”: choose another.").format(
                name=self.outputVolume.GetName())
        return self._inputTransformProblem()

    def _inputTransformProblem(self):
        initial = self.initialTransform
        if initial is not None:
            if not initial.IsTransformToWorldLinear():
                return _("The initial transform “{name}” is nonlinear: choose a linear one.").format(
                    name=initial.GetName())
            if scene.isUnder(self.movingVolume, initial):
                return _("The initial transform “{name}” already moves the moving volume, which is registered from "
                         "where it is seen: choose none.").format(name=initial.GetName())
        if self.fixedVolume in self.alsoMove:
            return _("“{name}” is the fixed volume and can not move along.").format(name=self.fixedVolume.GetName())
        for node in (*self.alsoMove, self.movingMask, self.fixedMask):
            problem = scene.transformProblem(node) if node is not None else ""
            if problem:
                return problem
        return ""

    def removedFromScene(self) -> bool:
        """Whether a node of the request has left the scene."""
        return any(node.GetScene() is None for node in self.nodes())

    def nodes(self):
        """The nodes that must live until the run ends."""
        return [node for node in (self.movingVolume, self.fixedVolume, self.outputTransform, self.outputVolume,
                                  *self.alsoMove) if node is not None]


class Task:
    """Runs a request; after the generator of `run` ends, `result` and `transformNode` hold what it made."""

    def __init__(self, request: Request):
        self.request = request
        self.result: Optional[Result] = None
        self.registration = None
        self.transformNode = None
        self._placement = None
        self.sceneClosed = False
        """Set before closing the generator when the scene goes away: there is nothing to put back."""

    def run(self):
        """Generator of the core's steps; with preview, one that moves far comes several times, as the volume glides."""
        change = scene.SceneChange()
        try:
            yield from self._run(change)
        except BaseException:  # GeneratorExit, too: the user pressed Cancel
            self._placement = None  # its transform may be on its way out of the scene
            if not self.sceneClosed:
                change.undo()
            raise

    def _run(self, change):
        request = self.request
        problem = request.problem()
        if problem:
            raise Problem(problem)
        moving, fixed = request.movingVolume, request.fixedVolume
        movingVolume = scene.coreVolume(moving, scene.MOVING)
        fixedVolume = scene.coreVolume(fixed, scene.FIXED)
        engine.validate(movingVolume, scene.MOVING)
        engine.validate(fixedVolume, scene.FIXED)
        initial = scene.matrixToWorld(request.initialTransform) if request.initialTransform is not None else None
        steps = engine.steps(movingVolume, fixedVolume, request.settings, init=initial,
                             movingMask=scene.coreMask(request.movingMask, moving),
                             fixedMask=scene.coreMask(request.fixedMask, fixed))
        try:
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    registration = end.value
                    break
                if request.preview:
                    self._placement = self._placement or Placement(request, change)
                    for matrix in engine.glide(self._placement.matrix, step.matrix, movingVolume):
                        self._placement.move(matrix)
                        yield step
                else:
                    yield step
        finally:
            steps.close()
        self._finish(change, registration, movingVolume, fixedVolume)

    def removedNode(self):
        """A node that the run needs and that has left the scene, or None."""
        nodes = [*self.request.nodes(), *([self._placement.transformNode] if self._placement else [])]
        return next((node for node in nodes if node.GetScene() is None), None)

    def _finish(self, change, registration, movingVolume, fixedVolume):
        request = self.request
        # The resampled volume first: it is the only part that can fail (memory), and then nothing has moved.
        resampled = registration.apply(movingVolume, fixedVolume) if request.outputVolume is not None else None
        placement = self._placement = self._placement or Placement(request, change)
        placement.move(registration.matrix)
        notes = [note for note in map(scene.sequenceNote, (request.movingVolume, request.fixedVolume)) if note]
        self.registration = registration
        self.result = Result.of(registration, request.movingVolume.GetName(), request.fixedVolume.GetName(),
                                placement.before, placement.after(registration.matrix), notes)
        if request.wantTransform:
            self.transformNode = placement.transformNode
            self.transformNode.SetNodeReferenceID(self.transformNode.GetMovingNodeReferenceRole(),
                                                  request.movingVolume.GetID())
            self.transformNode.SetNodeReferenceID(self.transformNode.GetFixedNodeReferenceRole(),
                                                  request.fixedVolume.GetID())
            self.result.store(self.transformNode)
        else:
            self._placement = None  # the hidden transform of the preview goes now, and nobody needs it
            change.undo()
        if resampled is not None:
            _fillVolume(request.outputVolume, resampled, request.movingVolume, request.fixedVolume)
        if request.show:
            shown = request.movingVolume if request.wantTransform else request.outputVolume
            change.showOver(request.fixedVolume, shown)


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
        if not request.wantTransform:
            self.transformNode = change.addNode("vtkMRMLLinearTransformNode", _("Registration preview"), hidden=True)
        elif request.outputTransform is None:
            self.transformNode = change.addNode(
                "vtkMRMLLinearTransformNode",
                _("{moving} to {fixed}").format(moving=moving.GetName(), fixed=request.fixedVolume.GetName()))
        else:
            self.transformNode = request.outputTransform
            change.remember(self.transformNode)
        self._parentFromWorld = np.linalg.inv(scene.matrixToWorld(self.transformNode.GetParentTransformNode()))
        companions = [node for node in request.alsoMove if node is not moving] if request.wantTransform else []
        places = [self._place(node, change) for node in companions]
        self.move(np.eye(4))  # nothing moves yet: R is the identity
        change.setParent(moving, self.transformNode)
        for node, place in zip(companions, places):
            change.setParent(node, place)
        if request.preview:
            change.showOver(request.fixedVolume, moving)

    def _place(self, node, change):
        """The transform that a companion has to be under."""
        parent = node.GetParentTransformNode()
        offset = np.linalg.inv(self.before) @ scene.matrixToWorld(parent)
        if np.allclose(offset, np.eye(4), atol=1e-9):
            return self.transformNode
        if parent is not None and parent.GetParentTransformNode() is self.transformNode and np.allclose(
                offset, slicer.util.arrayFromTransformMatrix(parent), atol=1e-9):
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


def _fillVolume(node, volume, moving, fixed):
    """Put a core Volume on the fixed volume's grid into a node, under the fixed volume's own transforms."""
    import vtk
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(volume.data.transpose(2, 1, 0)))
    matrix = vtk.vtkMatrix4x4()
    fixed.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(fixed.GetTransformNodeID())
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    source = moving.GetScalarVolumeDisplayNode()
    if source is not None:
        display = node.GetScalarVolumeDisplayNode()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(source.GetWindow(), source.GetLevel())
