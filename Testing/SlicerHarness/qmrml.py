"""Stand-ins for the qMRML widgets that the module uses, on real MRML nodes and scene events."""
from __future__ import annotations

import ctk
import qt
from PySide6.QtCore import Property, Signal


def _register(cls):
    qt.customWidgets[cls.__name__] = cls
    return cls


@_register
class qMRMLWidget(qt.QWidget):
    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)


@_register
class qSlicerWidget(qMRMLWidget):
    pass


def _stored(name, kind, default):
    """A Qt property that only keeps its value."""
    return Property(kind, lambda self: self.__dict__.get("_stored_" + name, default),
                    lambda self, value: self.__dict__.__setitem__("_stored_" + name, value))


@_register
class qMRMLNodeComboBox(qt.QWidget):
    """Choose a node of the scene, or "None", or make a new one."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeAddedByUser = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._tags = None, []
        self._nodes, self._entries, self._current = [], [], None
        self._types, self._noneEnabled, self._noneDisplay = (), False, "None"
        self._combo = qt.QComboBox(self)
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._combo)
        self._combo.currentIndexChanged.connect(self._indexChanged)
        self._combo.activated.connect(self._activated)

    addEnabled = _stored("addEnabled", bool, True)
    removeEnabled = _stored("removeEnabled", bool, True)
    renameEnabled = _stored("renameEnabled", bool, False)
    editEnabled = _stored("editEnabled", bool, False)
    showHidden = _stored("showHidden", bool, False)
    showChildNodeTypes = _stored("showChildNodeTypes", bool, True)
    selectNodeUponCreation = _stored("selectNodeUponCreation", bool, True)
    baseName = _stored("baseName", str, "")

    def _setNoneEnabled(self, enabled):
        self._noneEnabled = enabled
        self._refresh()

    def _setNoneDisplay(self, text):
        self._noneDisplay = text
        self._refresh()

    def _setTypes(self, types):
        self._types = tuple(types)
        self._refresh()

    noneEnabled = Property(bool, lambda self: self._noneEnabled, _setNoneEnabled)
    noneDisplay = Property(str, lambda self: self._noneDisplay, _setNoneDisplay)
    nodeTypes = Property("QStringList", lambda self: self._types, _setTypes)
    currentNodeID = property(lambda self: self._current.GetID() if self._current else "")

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        if scene:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent, scene.EndImportEvent):
                self._tags.append(scene.AddObserver(event, lambda *_: self._refresh()))
        self._refresh()

    def _accepts(self, node):
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        if self.showChildNodeTypes:
            return any(node.IsA(t) for t in self._types)
        return node.GetClassName() in self._types

    def _refresh(self):
        self._nodes = []
        if self._scene and not self._scene.IsClosing():
            nodes = [self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes())]
            self._nodes = [node for node in nodes if self._accepts(node)]
        self._entries = ([None] if self._noneEnabled or not self._nodes else []) + self._nodes
        blocked = self._combo.blockSignals(True)
        self._combo.clear()
        for node in self._entries:
            self._combo.addItem(node.GetName() if node else self._noneDisplay)
        if self.addEnabled:
            for name in self._types:
                self._combo.addItem(f"Create new {name.replace('vtkMRML', '').replace('Node', '')}")
        self._combo.blockSignals(blocked)
        keep = self._current if self._current in self._entries else None
        if keep is None and not self._noneEnabled and self._nodes:
            keep = self._nodes[0]  # as the original, which picks the first node where "None" is not offered
        self._select(keep)

    def _select(self, node):
        changed = node is not self._current
        self._current = node
        if node in self._entries:
            blocked = self._combo.blockSignals(True)
            self._combo.setCurrentIndex(self._entries.index(node))
            self._combo.blockSignals(blocked)
        if changed:
            self.currentNodeChanged.emit(node)
            self.currentNodeIDChanged.emit(node.GetID() if node else "")

    def _indexChanged(self, index):
        if 0 <= index < len(self._entries):
            self._select(self._entries[index])

    def _activated(self, index):
        if index >= len(self._entries):
            self.addNode(self._types[index - len(self._entries)])

    def addNode(self, className=None):
        className = className or self._types[0]
        name = self.baseName or className.replace("vtkMRML", "").replace("Node", "")
        node = self._scene.AddNewNodeByClass(className, self._scene.GenerateUniqueName(name))
        self._refresh()
        self._select(node)
        self.nodeAddedByUser.emit(node)
        return node

    def currentNode(self):
        return self._current

    def setCurrentNode(self, node):
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node) if self._scene else None
        self._select(node)

    def setCurrentNodeID(self, nodeID):
        self.setCurrentNode(nodeID)

    def nodeCount(self):
        return len(self._nodes)


# Named by Slicer's own connectors between parameters and widgets; the module does not use them.
for _name, _base in {"qMRMLSliderWidget": ctk.ctkSliderWidget, "qMRMLSpinBox": ctk.ctkDoubleSpinBox,
                     "qMRMLRangeWidget": qt.QWidget}.items():
    globals()[_name] = _register(type(_name, (_base,), {"__module__": "qmrml"}))
