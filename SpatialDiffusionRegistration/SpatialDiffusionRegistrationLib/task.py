"""One registration from nodes to nodes, as a generator of steps.

The same generator runs behind the Register button (one step per timer tick), in the batch and in scripts.  Closing it
between two steps, or an error at any point, puts the scene back exactly as it was.
"""

from __future__ import annotations

from contextlib import ExitStack

from slicer.i18n import tr as _

from . import engine, landmarks, masks, resampling, scene
from .change import RESAMPLED_ATTRIBUTE, SceneChange
from .cursor import waitCursor
from .placement import Placement
from .preview import Preview
from .problem import Problem
from .request import Request
from .result import Result, apart


class Task:
    """Runs a request; after the generator of `run` ends, `result` and `transformNode` hold what it made."""

    def __init__(self, request: Request):
        self.request = request
        self.result: Result | None = None
        self.registration = self.transformNode = None
        self.change = SceneChange()
        """What was done to the scene; its `undo` takes all of it back."""
        self._preview = None
        self._seen = {}
        """Where the two volumes were seen when they were read: {node: 4x4 from voxel to world}."""
        self._voxels = {}
        """And what they showed then."""
        self.sceneClosed = False
        """Set before ending the run when the scene goes away: there is nothing to put back."""

    def run(self):
        """Generator of the core's steps; with preview, one that moves far comes several times, as the volume glides."""
        try:
            yield from self._run()
        except BaseException:  # GeneratorExit, too: the user pressed Cancel
            self.putBack()
            raise

    def putBack(self):
        """Put the scene back as it was; nothing happens the second time."""
        if not self.sceneClosed:
            self.change.undo()
            self._endPreview()

    def pause(self):
        """Let the views show what they showed before the run, until `resume`; the run goes on."""
        if self._preview is not None:
            self._preview.pause()

    def resume(self):
        if self._preview is not None:
            self._preview.resume()

    def _endPreview(self):
        preview, self._preview = self._preview, None
        if preview is not None:
            preview.remove()

    def _run(self):
        request = self.request
        problem = request.problem()
        if problem:
            raise Problem(problem)
        with ExitStack() as busy:
            busy.enter_context(waitCursor())
            moving = self._volume(request.movingVolume, scene.MOVING)
            fixed = self._volume(request.fixedVolume, scene.FIXED)
            initial = request.initialTransform
            steps = engine.steps(
                moving,
                fixed,
                request.settings,
                init=scene.matrixToWorld(initial) if initial is not None else None,
                movingMask=masks.coreMask(request.movingMask, request.movingVolume, request.movingSegment),
                fixedMask=masks.coreMask(request.fixedMask, request.fixedVolume, request.fixedSegment),
                beat=self._beatThat(busy.close),
            )
            step = yield from self._follow(steps, moving, busy)
        with waitCursor():
            self._finish(step)

    def _volume(self, node, role):
        volume = scene.coreVolume(node, role)
        engine.validate(volume, role)
        self._seen[node], self._voxels[node] = scene.voxelToWorld(node), _voxels(node)
        return volume

    def _beatThat(self, begun):
        """What the core calls while it computes: the wait cursor goes, and the window lives."""

        def beat():
            begun()
            if self.request.beat is not None:
                self.request.beat()

        return beat

    def _follow(self, steps, moving, busy):
        """Pass the core's steps on, moving the preview; return the Registration."""
        try:
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
                busy.close()
                self._checkPlaces()
                if not self.request.preview:
                    yield step
                    continue
                if self._preview is None:
                    self._preview = Preview(self.request.movingVolume, self.request.fixedVolume)
                    self._preview.show(self.change)
                for matrix in engine.glide(self._preview.matrix, step.matrix, moving):
                    self._preview.move(matrix)
                    yield step
        finally:
            steps.close()

    def _checkPlaces(self):
        """What is found holds for where the volumes were, and for what they showed, when they were read."""
        removed = self.removedNode()
        if removed is not None:
            raise Problem(
                _("“{name}” was removed from the scene, so the registration was stopped.").format(
                    name=removed.GetName()
                )
            )
        for node, place in self._seen.items():
            moved = apart(scene.voxelToWorld(node), place, node.GetImageData())
            if moved or _voxels(node) != self._voxels[node]:
                raise Problem(
                    _(
                        "“{name}” was moved or changed while it was registered, so the registration was stopped: "
                        "start it again."
                    ).format(name=node.GetName())
                )

    def removedNode(self):
        """A node that the run needs and that has left the scene, or None."""
        return next((node for node in self.request.nodes() if node.GetScene() is None), None)

    def _finish(self, registration):
        request = self.request
        self._checkPlaces()
        problem = request.outputProblem()  # what was fine at the start may have been changed meanwhile
        if problem:
            raise Problem(problem)
        # The resampled volume first: it is what can fail (memory), and then nothing has moved.
        resampled = None
        if request.outputVolume is not None:
            resampled = resampling.onGridOf(
                request.movingVolume, request.fixedVolume, request.interpolation, registration.matrix
            )
        self.registration, self.result = registration, self._resultOf(registration)
        if request.wantTransform:
            placement = Placement(request, self.change)
            placement.move(registration.matrix)
            self._storeIn(placement.transformNode)
        if resampled is not None:
            self._fillOutput(resampled)
        if request.show:
            self.change.showOver(
                request.fixedVolume, request.movingVolume if request.wantTransform else request.outputVolume
            )
        self._endPreview()

    def _resultOf(self, registration):
        """To be asked while everything is still where it was."""
        request = self.request
        before = scene.matrixToWorld(request.movingVolume.GetParentTransformNode())
        errors = landmarks.errors(request.movingLandmarks, request.fixedLandmarks, registration.matrix)
        notes = [note for note in map(scene.sequenceNote, (request.movingVolume, request.fixedVolume)) if note]
        if errors is None and request.movingLandmarks is not None:
            notes.append(_("The landmarks were changed during the registration, so their distances are not told."))
        return Result.of(
            registration,
            request.movingVolume,
            request.fixedVolume,
            before,
            registration.matrix @ before,
            notes,
            errors,
        )

    def _storeIn(self, transformNode):
        request = self.request
        self.transformNode = transformNode
        transformNode.SetNodeReferenceID(transformNode.GetMovingNodeReferenceRole(), request.movingVolume.GetID())
        transformNode.SetNodeReferenceID(transformNode.GetFixedNodeReferenceRole(), request.fixedVolume.GetID())
        self.result.store(transformNode)

    def _fillOutput(self, image):
        node = self.request.outputVolume
        self.change.rememberVolume(node)
        resampling.fill(node, image, self.request.fixedVolume)
        resampling.copyWindow(self.request.movingVolume, node)
        node.SetAttribute(
            RESAMPLED_ATTRIBUTE,
            _("{moving} on the grid of {fixed}").format(moving=self.result.moving, fixed=self.result.fixed),
        )


def _voxels(node):
    """What changes when the voxels do: a browser shows another frame, somebody paints or crops."""
    image = node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    return scalars, scalars.GetMTime() if scalars is not None else 0
