"""qMRMLNodeComboBox on Qt's real QComboBox, item model and filter: what Qt does to the current row happens here.

Where the behaviour comes from (read, not copied), in Slicer's Libs/MRML/Widgets:

* qMRMLSceneModel.cxx: one "Scene" row; below it "pre" rows (None), a row for every node of the scene, "post" rows
  (separator, Create new ...).  `setPreItems` and `setPostItems` take the old rows out and put the new ones in, one by
  one, where the texts differ.  Nodes are added at NodeAddedEvent and leave at NodeAboutToBeRemovedEvent (priority -10);
  the end of a scene's import or closing takes all node rows out and puts all in again.  Visible nodes are observed, so
  that a new name is shown.
* qMRMLSortFilterProxyModel.cxx: node types, children of the types unless `showChildNodeTypes` is false, nothing that is
  hidden from editors.
* qMRMLNodeComboBox.cxx: `setNoneDisplay` replaces the None row while it may be the current one (QComboBox then makes
  another row current, and that node is emitted); removing the current node makes its neighbour current; a current row
  that is neither a node nor None selects the last node; `setNodeTypes` and the post rows keep the current row.
* qMRMLNodeFactory.cxx: names of new nodes.

Slicer 5.8 and 5.10 are built with Qt 5.15, whose combo box goes to the row above when the current one is removed (Qt 6
goes to the row below): that is done as in Qt 5.15 here.
"""

from __future__ import annotations

import qt
import vtk
from PySide6.QtCore import Property, QEvent, QSortFilterProxyModel, Qt, Signal
from PySide6.QtGui import QKeyEvent, QStandardItem, QStandardItemModel
from PySide6.QtWidgets import QApplication

UID_ROLE, EXTRA_ROLE = Qt.UserRole + 1, Qt.UserRole + 3
PRE, POST, SCENE = "preItem", "postItem", "scene"


class SceneModel(QStandardItemModel):
    """As Libs/MRML/Widgets/qMRMLSceneModel.cxx: the scene's nodes between the pre and the post rows."""

    def __init__(self, parent):
        super().__init__(parent)
        self.scene, self._tags, self._observed = None, [], {}
        self._extra = {PRE: [], POST: []}
        self.sceneItem = None

    def setScene(self, scene):
        if scene is self.scene:
            return
        for tag in self._tags:
            self.scene.RemoveObserver(tag)
        self.scene, self._tags = scene, []
        self._extra = {PRE: [], POST: []}
        self.removeRows(0, self.rowCount())
        self.sceneItem = None
        if scene is None:
            return
        self.sceneItem = QStandardItem("Scene")
        self.sceneItem.setFlags(Qt.ItemIsEnabled | Qt.ItemIsDropEnabled)
        self.sceneItem.setData(SCENE, UID_ROLE)
        self.appendRow(self.sceneItem)
        self.updateScene()

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def added(_caller, _event, node):
            if not scene.IsImporting():
                self._insert(node, self._position(node))

        @vtk.calldata_type(vtk.VTK_OBJECT)
        def leaving(_caller, _event, node):
            if not scene.IsClosing():
                self._forget(node)
                row = self._rowOf(node.GetID())
                if row >= 0:
                    self.sceneItem.removeRow(row)

        def again(*_ignored):
            self.updateScene()

        self._tags = [
            scene.AddObserver(scene.NodeAddedEvent, added, 10.0),
            scene.AddObserver(scene.NodeAboutToBeRemovedEvent, leaving, -10.0),
            scene.AddObserver(scene.EndCloseEvent, again),
            scene.AddObserver(scene.EndImportEvent, again),
        ]

    def updateScene(self):
        for node in list(self._observed):
            self._forget(node)
        first = len(self._extra[PRE])
        self.sceneItem.removeRows(first, self.sceneItem.rowCount() - first - len(self._extra[POST]))
        for index in range(self.scene.GetNumberOfNodes()):
            self._insert(self.scene.GetNthNode(index), index)

    def setExtra(self, kind, texts):
        """setPreItems or setPostItems."""
        if self.sceneItem is None or texts == self._extra[kind]:
            return
        for row in reversed(range(self.sceneItem.rowCount())):
            if self.sceneItem.child(row).data(UID_ROLE) == kind:
                self.sceneItem.removeRow(row)
        for number, text in enumerate(texts):
            item = QStandardItem("" if text == "separator" else text)
            item.setData(kind, UID_ROLE)
            item.setData(text, EXTRA_ROLE)
            item.setFlags(Qt.ItemIsEnabled | Qt.ItemIsSelectable if kind == PRE else Qt.ItemIsEnabled)
            self.sceneItem.insertRow(number if kind == PRE else self.sceneItem.rowCount(), [item])
        self._extra[kind] = list(texts)

    def extraCount(self):
        return len(self._extra[PRE]) + len(self._extra[POST])

    def observe(self, node):
        """Visible nodes only: names follow."""
        if node not in self._observed:
            self._observed[node] = node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._renamed)

    def _renamed(self, node, _event):
        if node.GetScene() is None or self.scene.IsClosing() or self.scene.IsImporting():
            return
        row = self._rowOf(node.GetID())
        if row >= 0 and self.sceneItem.child(row).text() != node.GetName():
            self.sceneItem.child(row).setText(node.GetName())

    def _forget(self, node):
        tag = self._observed.pop(node, None)
        if tag is not None:
            node.RemoveObserver(tag)

    def _position(self, node):
        count = self.scene.GetNumberOfNodes()
        if self.scene.GetNthNode(count - 1) is node:
            return count - 1
        return next(index for index in range(count) if self.scene.GetNthNode(index) is node)

    def _insert(self, node, index):
        item = QStandardItem(node.GetName() or "")
        item.setData(node.GetID(), UID_ROLE)
        last = self.sceneItem.rowCount() - len(self._extra[POST])
        self.sceneItem.insertRow(min(len(self._extra[PRE]) + index, last), [item])

    def _rowOf(self, nodeID):
        found = self.match(self.index(0, 0, self.sceneItem.index()), UID_ROLE, nodeID, 1, Qt.MatchExactly)
        return found[0].row() if found else -1


class FilterModel(QSortFilterProxyModel):
    """As Libs/MRML/Widgets/qMRMLSortFilterProxyModel.cxx: which rows are shown."""

    def __init__(self, parent):
        super().__init__(parent)
        self.types, self.showChildren, self.showHidden = (), True, False
        self.setDynamicSortFilter(True)

    def filterAcceptsRow(self, row, parent):
        model = self.sourceModel()
        item = (model.itemFromIndex(parent) if parent.isValid() else model.invisibleRootItem()).child(row)
        uid = item.data(UID_ROLE) if item is not None else None
        if item is None or uid in (None, PRE, POST, SCENE) or model.scene is None:
            return item is not None
        node = model.scene.GetNodeByID(uid)
        accepted = node is None or self._accepts(node)
        if accepted and node is not None:
            model.observe(node)
        return accepted

    def _accepts(self, node):
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        if not self.types:
            return True
        return any(node.IsA(t) and (self.showChildren or t == node.GetClassName()) for t in self.types)


class qMRMLNodeComboBox(qt.QWidget):
    """As Libs/MRML/Widgets/qMRMLNodeComboBox.cxx: choose a node of the scene, or None, or make a new one."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeAddedByUser = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._noneEnabled, self._noneDisplay, self._switching = False, "None", False
        self._enabled = {"add": True, "remove": True, "rename": False, "edit": False}
        self._selectNew, self._baseNames = True, {}
        self._model = SceneModel(self)
        self._filter = FilterModel(self)
        self._filter.setSourceModel(self._model)
        self._combo = qt.QComboBox(self)
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._combo)
        self._before = None
        self._filter.rowsAboutToBeRemoved.connect(self._rememberRow)
        self._filter.rowsRemoved.connect(self._moveAsQt5)  # before the combo box itself, which is Qt 6's
        self._combo.setModel(self._filter)
        self._filter.rowsRemoved.connect(self._refreshIfHidden)
        self._filter.modelReset.connect(self._refreshIfHidden)
        self._filter.layoutChanged.connect(self._refreshIfHidden)
        self._combo.currentTextChanged.connect(self._emitCurrent)
        self._combo.view().clicked.connect(self._clicked)
        self.setEnabled(False)

    # Properties

    def _setNoneEnabled(self, enabled):
        if enabled != self._noneEnabled:
            self._noneEnabled = enabled
            self._updateNone()

    def _setNoneDisplay(self, text):
        if text != self._noneDisplay:
            self._noneDisplay = text
            self._updateNone()

    def _setTypes(self, types):
        types = tuple(t for t in types if t)
        if types != self._filter.types:
            self._filter.types = types
            self._filter.invalidate()
        self._updateActions()

    def _setShowChildren(self, show):
        if show != self._filter.showChildren:
            self._filter.showChildren = show
            self._filter.invalidate()

    def _setShowHidden(self, show):
        if show != self._filter.showHidden:
            self._filter.showHidden = show
            self._filter.invalidate()

    def _action(name):
        def write(self, enabled):
            if self._enabled[name] != enabled:
                self._enabled[name] = enabled
                self._updateActions()

        return Property(bool, lambda self: self._enabled[name], write)

    addEnabled, removeEnabled = _action("add"), _action("remove")
    renameEnabled, editEnabled = _action("rename"), _action("edit")
    noneEnabled = Property(bool, lambda self: self._noneEnabled, _setNoneEnabled)
    noneDisplay = Property(str, lambda self: self._noneDisplay, _setNoneDisplay)
    nodeTypes = Property("QStringList", lambda self: self._filter.types, _setTypes)
    showChildNodeTypes = Property(bool, lambda self: self._filter.showChildren, _setShowChildren)
    showHidden = Property(bool, lambda self: self._filter.showHidden, _setShowHidden)
    selectNodeUponCreation = Property(
        bool, lambda self: self._selectNew, lambda self, on: setattr(self, "_selectNew", on)
    )
    baseName = Property(
        str,
        lambda self: self._baseNames.get((self._filter.types or ("",))[0], ""),
        lambda self, name: self._baseNames.update(dict.fromkeys(self._filter.types, name)),
    )
    currentNodeID = property(lambda self: self._uid(self._combo.currentIndex))

    # The extra rows

    def _updateNone(self):
        self._model.setExtra(PRE, [self._noneDisplay] if self._noneEnabled else [])

    def _updateActions(self):
        texts = []
        if self._model.scene is not None and any(self._enabled.values()):
            types = self._filter.types
            label = self.nodeTypeLabel(types[0]) if len(types) == 1 else "node"
            texts.append("separator")
            texts += [f"Rename current {label}"] if self._enabled["rename"] else []
            texts += [f"Edit current {label}"] if self._enabled["edit"] else []
            texts += [f"Create new {self.nodeTypeLabel(t)}" for t in types] if self._enabled["add"] else []
            texts += [f"Delete current {label}"] if self._enabled["remove"] else []
        current = self._combo.currentIndex
        self._model.setExtra(POST, texts)
        self._combo.setCurrentIndex(current)

    def nodeTypeLabel(self, className):
        name = getattr(self._model.scene, "GetTypeDisplayNameByClassName", lambda _c: "")(className)
        return name or className.replace("vtkMRML", "").replace("Node", "")

    def _clicked(self, index):
        text = self._filter.data(index, EXTRA_ROLE) or ""
        if text.startswith("Create new "):
            label = text[len("Create new ") :]
            self.addNode(next(t for t in self._filter.types if self.nodeTypeLabel(t) == label))

    # Scene and current node

    def mrmlScene(self):
        return self._model.scene

    def setMRMLScene(self, scene):
        if scene is self._model.scene:
            return
        self._switching = True
        self._model.setScene(scene)
        self._switching = False
        self._updateNone()
        self._updateActions()
        self._combo.setRootModelIndex(self._filter.index(0, 0))
        self.setCurrentNode(None)
        self.setEnabled(scene is not None)

    def _uid(self, row):
        uid = self._filter.data(self._filter.index(row, 0, self._combo.rootModelIndex()), UID_ROLE)
        return uid if uid not in (None, PRE, POST, SCENE) else ""

    def _nodeAt(self, row):
        uid = self._uid(row)
        return self._model.scene.GetNodeByID(uid) if uid and self._model.scene is not None else None

    def currentNode(self):
        return self._nodeAt(self._combo.currentIndex)

    def nodeCount(self):
        return self._combo.count - self._model.extraCount() if self._model.scene is not None else 0

    def _emitCurrent(self, *_ignored):
        if self._switching:
            return
        row = self._combo.currentIndex
        node = self._nodeAt(row)
        if node is None and row != (0 if self._noneEnabled else -1):
            last = self._nodeAt(self.nodeCount() - 1 + self._noneEnabled)
            if last is not None:
                self.setCurrentNode(last)
            return
        self.currentNodeChanged.emit(node)
        self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def _refreshIfHidden(self, *_ignored):
        if self.currentNode() is None:
            self.setCurrentNode(None)

    def _rememberRow(self, parent, first, last):
        row = self._combo.currentIndex
        same = parent == self._combo.rootModelIndex()
        self._before = row if same and first <= row <= last else None

    def _moveAsQt5(self, *_ignored):
        """What QComboBoxPrivate::_q_rowsRemoved of Qt 5.15 does where the current row has gone: the row above becomes
        current; where there is none, no row is, and that is told."""
        before, self._before = self._before, None
        if before is not None and self._combo.currentIndex == -1:
            if before:
                self._combo.setCurrentIndex(before - 1)
            else:
                self._emitCurrent()

    def setCurrentNode(self, node):
        self.setCurrentNodeID(node.GetID() if node is not None else "")

    def setCurrentNodeID(self, nodeID):
        found = (
            self._filter.match(
                self._filter.index(0, 0), UID_ROLE, nodeID, 1, Qt.MatchRecursive | Qt.MatchExactly | Qt.MatchWrap
            )
            if nodeID
            else []
        )
        view = self._combo.view()
        if not found:
            sceneIndex = self._filter.index(0, 0)
            self._combo.setRootModelIndex(sceneIndex)
            view.setCurrentIndex(self._filter.index(0, 0, sceneIndex) if self._noneEnabled else sceneIndex)
            self._combo.setCurrentIndex(0 if self._noneEnabled else -1)
        elif view.currentIndex() != found[0]:
            view.setCurrentIndex(found[0])
            # As the original: the combo box takes over what its list has as current, as if Enter was pressed.
            QApplication.sendEvent(view, QKeyEvent(QEvent.ShortcutOverride, Qt.Key_Enter, Qt.NoModifier))

    def addNode(self, className=None):
        className = className or self._filter.types[0]
        scene = self._model.scene
        node = scene.CreateNodeByClass(className)
        node.UnRegister(None)
        node.SetName(scene.GetUniqueNameByString(self._baseNames.get(className) or node.GetNodeTagName()))
        node = scene.AddNode(node)
        if self._selectNew:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node
