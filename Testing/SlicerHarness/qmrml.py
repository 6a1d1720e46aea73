"""Stand-ins for the qMRML widgets that the module uses, on real MRML nodes and scene events."""

from __future__ import annotations

import ctk
import node_combo_box
import qt
from PySide6.QtCore import Signal


def _register(cls):
    qt.customWidgets[cls.__name__] = cls
    return cls


@_register
class qMRMLWidget(qt.QWidget):
    """As Libs/MRML/Widgets/qMRMLWidget.cxx: keeps the scene, and tells of another one only."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene):
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


@_register
class qSlicerWidget(qMRMLWidget):
    """As Base/QTGUI/qSlicerWidget.cxx, which differs from qMRMLWidget in nothing that is used here."""


_register(node_combo_box.qMRMLNodeComboBox)
qMRMLNodeComboBox = node_combo_box.qMRMLNodeComboBox


# Named by Slicer's own connectors between parameters and widgets; the module does not use them.
for _name, _base in {
    "qMRMLSliderWidget": ctk.ctkSliderWidget,
    "qMRMLSpinBox": ctk.ctkDoubleSpinBox,
    "qMRMLRangeWidget": qt.QWidget,
}.items():
    globals()[_name] = _register(type(_name, (_base,), {"__module__": "qmrml"}))
