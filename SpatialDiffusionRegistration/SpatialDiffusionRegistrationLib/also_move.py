"""The list of what follows the moving volume."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

from . import parameters, scene


class AlsoMoveList:
    """A checkable list of nodes, kept in the parameter node; what belongs to the moving volume's scan comes first."""

    def __init__(self, widget):
        self._widget, self._parameters = widget, None
        self._shown, self._updating = None, False
        widget.connect("itemChanged(QListWidgetItem*)", self._onChanged)

    def update(self, parameterNode):
        """Show what can follow; rows are made anew only if they are others."""
        self._parameters = p = parameterNode
        self._letGo(p)
        checked = {node.GetID() for node in parameters.nodeList(p, parameters.ALSO_MOVE_ROLE)}
        shown = [(node.GetID(), node.GetName()) for node in self._nodes(p)]
        self._updating = True
        try:
            if shown != self._shown:
                self._fill(shown)
            for row, (nodeID, _name) in enumerate(shown):
                item = self._widget.item(row)
                state = qt.Qt.Checked if nodeID in checked else qt.Qt.Unchecked
                if item.checkState() != state:
                    item.setCheckState(state)
        finally:
            self._updating = False

    def nodes(self):
        """What is listed now."""
        found = [slicer.mrmlScene.GetNodeByID(nodeID) for nodeID, _name in self._shown or ()]
        return [node for node in found if node is not None]

    def clear(self):
        """Check nothing: what belonged to one volume does not belong to another."""
        if self._parameters is not None:
            parameters.setNodeList(self._parameters, parameters.ALSO_MOVE_ROLE, [])

    @staticmethod
    def _letGo(p):
        """What has become the fixed volume's is not in the list any more, so nobody could uncheck it."""
        checked = parameters.nodeList(p, parameters.ALSO_MOVE_ROLE)
        kept = [node for node in checked if node not in (p.fixedVolume, p.fixedMask, p.fixedLandmarks)]
        parameters.setNodeList(p, parameters.ALSO_MOVE_ROLE, kept)

    @staticmethod
    def _nodes(p):
        excluded = (
            [
                node
                for node in (p.movingVolume, p.fixedVolume, p.outputVolume, p.fixedMask, p.fixedLandmarks)
                if node is not None
            ]
            if p.movingVolume is not None
            else []
        )
        nodes = scene.transformables(excluded)
        if p.movingVolume is None:
            return nodes
        mine = [scene.belongsTo(node, p.movingVolume) or node in (p.movingMask, p.movingLandmarks) for node in nodes]
        return [node for _mine, node in sorted(zip(mine, nodes), key=lambda pair: not pair[0])]

    def _fill(self, shown):
        self._shown = shown
        self._widget.clear()
        for nodeID, name in shown:
            item = qt.QListWidgetItem(name)
            item.setData(qt.Qt.UserRole, nodeID)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Unchecked)
            self._widget.addItem(item)
        if not shown:
            item = qt.QListWidgetItem(_("Nothing else in the scene to move yet"))
            item.setFlags(qt.Qt.NoItemFlags)
            self._widget.addItem(item)

    def _onChanged(self, *_ignored):
        if self._updating or self._parameters is None:
            return
        checked = []
        for row in range(self._widget.count):
            item = self._widget.item(row)
            if item.data(qt.Qt.UserRole) and item.checkState() == qt.Qt.Checked:
                checked.append(slicer.mrmlScene.GetNodeByID(item.data(qt.Qt.UserRole)))
        parameters.setNodeList(self._parameters, parameters.ALSO_MOVE_ROLE, [n for n in checked if n is not None])
