"""Runs a generator one step per tick of a timer, so that the window lives between the steps, and inside them."""

from __future__ import annotations

import time

import qt
import slicer

BEAT_SECONDS = 0.05
"""The window's events are handled about so often while a step is computed."""


class Stopped(BaseException):
    """Ends a step from inside; no failure, so nothing that handles failures may catch it."""


class Runner:
    """`onStep(step)` after every step, then one of `onDone()` or `onError(exception)`; after `stop` none of them.

    An exception in `onStep` ends the run, too, and goes to `onError`, as does one in `onDone`.
    `milliseconds`: pause between two steps.
    """

    _stepping = None
    """The runner that is inside a step; others wait, as only one can compute."""

    def __init__(self, steps, onStep, onDone, onError, milliseconds=1):
        self._steps, self._onStep, self._onDone, self._onError = steps, onStep, onDone, onError
        self.active = True
        self._lastBeat = 0.0
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(milliseconds)
        self._slot = self._tick  # the very same object, to be disconnected
        self._timer.connect("timeout()", self._slot)
        self._timer.start()

    def _tick(self):
        if not self.active:
            return
        if Runner._stepping is not None:
            self._timer.start()
            return
        Runner._stepping = self
        self._lastBeat = time.monotonic()
        outcome, argument = self._onStep, ()
        try:
            argument = (next(self._steps),)
        except Stopped:
            pass
        except StopIteration:
            outcome = self._onDone
        except Exception as error:  # told to the person by onError
            outcome, argument = self._onError, (error,)
        finally:
            Runner._stepping = None
        if not self.active:  # stopped from inside the step
            self._close()
        elif outcome == self._onStep:
            self._step(*argument)
        elif outcome == self._onDone:
            self._done()
        else:
            self._close()
            outcome(*argument)

    def _done(self):
        onDone, onError = self._onDone, self._onError
        self._close()
        try:
            onDone()
        except Exception as error:  # told to the person by onError
            onError(error)

    def _step(self, step):
        try:
            self._onStep(step)
        except Exception as error:  # told to the person by onError
            onError = self._onError
            self._close()
            onError(error)
            return
        if self.active:
            self._timer.start()

    def beat(self):
        """Called while a step is computed: let the window live; raises Stopped if the run was stopped meanwhile."""
        if Runner._stepping is not self or time.monotonic() - self._lastBeat < BEAT_SECONDS:
            return
        slicer.app.processEvents()
        self._lastBeat = time.monotonic()
        if not self.active:
            raise Stopped

    def stop(self):
        """End now, or as soon as the step that is under way beats; the generator's own clean-up runs then."""
        self.active = False
        if Runner._stepping is not self:
            self._close()

    def _close(self):
        """End, and let go of everything, or signal and slot would keep it alive."""
        self.active = False
        self._timer.stop()
        self._timer.disconnect("timeout()", self._slot)
        self._timer.deleteLater()
        self._steps.close()
        nothing = lambda *_ignored: None  # noqa: E731
        self._onStep = self._onDone = self._onError = nothing
        self._close, self._slot = nothing, None
