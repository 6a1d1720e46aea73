"""Runs a generator one step per tick of a timer, so that the window lives between the steps."""
from __future__ import annotations

import qt


class Runner:
    """`onStep(step)` after every step, then one of `onDone()` or `onError(exception)`; after `stop` none of them.

    `milliseconds`: pause between two steps.
    """

    def __init__(self, steps, onStep, onDone, onError, milliseconds=1):
        self._steps, self._onStep, self._onDone, self._onError = steps, onStep, onDone, onError
        self._stepping = self._stopRequested = False
        self.active = True
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(milliseconds)
        self._timer.connect("timeout()", self._tick)
        self._timer.start()

    def _tick(self):
        if not self.active:
            return
        self._stepping = True
        try:
            step = next(self._steps)
        except StopIteration:
            self.active = False
            outcome = self._onDone
        except Exception as error:  # told to the person by onError
            self.active = False
            failure = error  # Python forgets `error` at the end of this block
            outcome = lambda: self._onError(failure)  # noqa: E731
        else:
            outcome = lambda: self._onStep(step)  # noqa: E731
        finally:
            self._stepping = False
        if self._stopRequested:
            self._close()
            return
        outcome()
        if self.active:
            self._timer.start()

    def stop(self):
        """End between two steps; the generator's own clean-up runs now (or after the step that is under way)."""
        if self._stepping:
            self._stopRequested = True
        else:
            self._close()

    def _close(self):
        self.active = False
        self._timer.stop()
        self._steps.close()
