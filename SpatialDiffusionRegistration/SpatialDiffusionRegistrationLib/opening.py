"""Opening what was written in the program that the person uses for it."""

from __future__ import annotations

import qt


def openFile(path):
    """Open a page in the browser; whether the system has a program for it."""
    return bool(qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path))))
