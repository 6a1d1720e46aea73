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
from .problem import Problem
from .request import Request
from .result import Result


class Task:
    """Runs a request; after the generator of `run` ends, `result` and `transformNode` hold what it made."""

    def __init__(self, request: Request):
        self.request = request
        self.result: Result | None = None
        self.registration = self.transformNode = None
        self.change = SceneChange()
        """What was done to the scene; its `undo` takes all of it back."""
        self._placement = None
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
        self._placement = None  # its transform may be on its way out of the scene
        if not self.sceneClosed:
            self.change.undo()

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
                if not self.request.preview:
                    yield step
                    continue
                self._placement = self._placement or Placement(self.request, self.change)
                for matrix in engine.glide(self._placement.matrix, step.matrix, moving):
                    self._placement.move(matrix)
                    yield step
        finally:
            steps.close()

    def removedNode(self):
        """A node that the run needs and that has left the scene, or None."""
        nodes = [*self.request.nodes(), *([self._placement.transformNode] if self._placement else [])]
        return next((node for node in nodes if node.GetScene() is None), None)

    def _finish(self, registration):
        request = self.request
        # The resampled volume first: it is what can fail (memory), and then nothing has moved.
        resampled = None
        if request.outputVolume is not None:
            home = self._placement.before if self._placement is not None else None
            resampled = resampling.onGridOf(
                request.movingVolume, request.fixedVolume, request.interpolation, registration.matrix, home
            )
        placement = self._placement = self._placement or Placement(request, self.change)
        placement.move(registration.matrix)
        self.registration = registration
        self.result = self._resultOf(registration, placement)
        if request.wantTransform:
            self._storeIn(placement.transformNode)
        else:
            self._placement = None  # the hidden transform of the preview goes now, and nobody needs it
            self.change.undo()
        if resampled is not None:
            self._fillOutput(resampled)
        if request.show:
            shown = request.movingVolume if request.wantTransform else request.outputVolume
            self.change.showOver(request.fixedVolume, shown)

    def _resultOf(self, registration, placement):
        request = self.request
        notes = [note for note in map(scene.sequenceNote, (request.movingVolume, request.fixedVolume)) if note]
        errors = landmarks.errors(
            request.movingLandmarks,
            request.fixedLandmarks,
            registration.matrix,
            self._landmarksBefore(placement, registration),
        )
        return Result.of(
            registration,
            request.movingVolume,
            request.fixedVolume,
            placement.before,
            placement.after(registration.matrix),
            notes,
            errors,
        )

    def _landmarksBefore(self, placement, registration):
        """4x4: takes back where the moving landmarks are seen now, if they move along; None if they did not move."""
        node = self.request.movingLandmarks
        if node is None or not scene.isUnder(node, placement.transformNode):
            return None
        return engine.inverse(registration.matrix)

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
