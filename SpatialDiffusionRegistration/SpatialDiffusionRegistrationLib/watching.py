"""Follow what happens to nodes without doing work for each event."""

from __future__ import annotations

import qt
import slicer
import vtk


class Later:
    """Calls a function once, when the window is idle again, however often it is asked for."""

    def __init__(self, function):
        self._function = function
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(0)
        self._timer.connect("timeout()", self._now)

    def ask(self, *_ignored):
        if not self._timer.isActive():
            self._timer.start()

    def _now(self):
        self._function()

    def forget(self):
        """Do not call any more."""
        self._timer.stop()


class Watch:
    """Tells when one of the watched nodes gets another name or is moved."""

    def __init__(self, onChange):
        self._onChange, self._tags = onChange, {}

    def follow(self, nodes):
        """Watch these nodes, and no others."""
        wanted = {node.GetID(): node for node in nodes if node is not None and node.GetScene() is not None}
        for key in [key for key, (node, _tags) in self._tags.items() if wanted.get(key) is not node]:
            self._release(key)
        for key, node in wanted.items():
            if key not in self._tags:
                self._tags[key] = node, [node.AddObserver(event, self._changed) for event in _events(node)]

    def forget(self):
        for key in list(self._tags):
            self._release(key)

    def _release(self, key):
        node, tags = self._tags.pop(key)
        for tag in tags:
            node.RemoveObserver(tag)

    def _changed(self, *_ignored):
        self._onChange()


def _events(node):
    events = [vtk.vtkCommand.ModifiedEvent]
    if node.IsA("vtkMRMLTransformableNode"):
        events.append(slicer.vtkMRMLTransformableNode.TransformModifiedEvent)
    return events


class DialogWatch:
    """Tells when a dialog opens that blocks the window, as the one for saving does, and when it has closed.

    No event of the scene tells that it is being saved (vtkMRMLScene::Commit), so this is how to know in time.
    """

    MILLISECONDS = 100

    def __init__(self, isNeeded, onOpen, onClose):
        self._isNeeded, self._onOpen, self._onClose = isNeeded, onOpen, onClose
        self._open = False
        self._timer = qt.QTimer()
        self._timer.setInterval(self.MILLISECONDS)
        self._timer.connect("timeout()", self._look)

    def begin(self):
        """Watch for as long as `isNeeded()`."""
        if not self._timer.isActive():
            self._timer.start()

    def _look(self):
        was, self._open = self._open, qt.QApplication.activeModalWidget() is not None
        if self._open and not was:
            self._onOpen()
        elif was and not self._open:
            self._onClose()
        if not self._open and not self._isNeeded():
            self.forget()

    def forget(self):
        """Do not watch any more."""
        self._timer.stop()
        self._open = False
