"""The wait cursor."""

from __future__ import annotations

from contextlib import contextmanager

import qt


@contextmanager
def waitCursor():
    """Show it while something is done in one go.

    Unlike slicer.util.WaitCursor it handles no events: what the person does meanwhile must not come in between.
    """
    qt.QApplication.setOverrideCursor(qt.Qt.WaitCursor)
    try:
        yield
    finally:
        qt.QApplication.restoreOverrideCursor()
