"""Stand-ins for the CTK widgets that the module uses, with the names and properties of the originals."""

from __future__ import annotations

import qt
from PySide6.QtCore import Property, QEvent, Qt, Signal

_HEADER = 26  # height of a collapsible section's header, pixels


def _register(cls):
    qt.customWidgets[cls.__name__] = cls
    return cls


@_register
class ctkCollapsibleButton(qt.QWidget):
    """A section that a click on its header folds.

    As CTK's Libs/Widgets/ctkCollapsibleButton.cpp: while it is folded no child is visible, also one that is shown
    explicitly meanwhile; what was asked of each child (shown, hidden) holds when the section is opened.
    """

    contentsCollapsed = Signal(bool)

    def __init__(self, *arguments):
        parents = [a for a in arguments if a is not None and not isinstance(a, str)]
        super().__init__(parents[0] if parents else None)
        self._text = next((a for a in arguments if isinstance(a, str)), "")
        self._collapsed = self._forcing = False
        self._asked = {}  # child -> whether it is to be seen when the section is open
        self.setContentsMargins(0, _HEADER, 0, 0)

    def _setText(self, text):
        self._text = text
        self.update()

    def _setCollapsed(self, collapsed):
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self._fold()
        self.contentsCollapsed.emit(collapsed)

    def _fold(self):
        self._forcing = True
        if self._collapsed:
            for child in self.findChildren(qt.QtWidgets.QWidget, options=Qt.FindDirectChildrenOnly):
                if child not in self._asked:
                    self._asked[child] = not child.isHidden()
                    child.installEventFilter(self)
                    _hide(child)
        else:
            asked, self._asked = self._asked, {}
            for child, visible in asked.items():
                child.removeEventFilter(self)
                if visible:
                    child.show()
        self._forcing = False
        self.setMaximumHeight(_HEADER if self._collapsed else 16777215)

    def eventFilter(self, child, event):
        if not self._forcing and child in self._asked and event.type() in (QEvent.ShowToParent, QEvent.HideToParent):
            self._asked[child] = event.type() == QEvent.ShowToParent
            if self._asked[child]:
                self._forcing = True
                _hide(child)
                self._forcing = False
        return False

    text = Property(str, lambda self: self._text, _setText)
    collapsed = Property(bool, lambda self: self._collapsed, _setCollapsed)

    def showEvent(self, event):
        if self._collapsed:  # a .ui file sets `collapsed` before the children exist
            self._fold()
        super().showEvent(event)

    def sizeHint(self):
        size = super().sizeHint()
        return qt.QSize(size.width(), _HEADER) if self._collapsed else size

    def paintEvent(self, event):
        painter = qt.QtGui.QPainter(self)
        painter.setRenderHint(qt.QtGui.QPainter.Antialiasing)
        header = qt.QtCore.QRectF(0.5, 0.5, self.size.width() - 1, _HEADER - 5)
        painter.setPen(self.palette.color(qt.QtGui.QPalette.Mid))
        painter.setBrush(self.palette.color(qt.QtGui.QPalette.Button))
        painter.drawRoundedRect(header, 3, 3)
        painter.setPen(self.palette.color(qt.QtGui.QPalette.ButtonText))
        painter.drawText(8, 15, ("▸ " if self._collapsed else "▾ ") + self._text)
        painter.end()

    def mousePressEvent(self, event):
        if event.position().y() < _HEADER:
            self.collapsed = not self._collapsed


def _hide(child):
    """Hide, but not as if somebody had asked for it: Qt would not tell of being asked a second time."""
    child.hide()
    child.setAttribute(Qt.WA_WState_ExplicitShowHide, False)


@_register
class ctkSliderWidget(qt.QWidget):
    """A slider and a number that follow each other, as CTK's Libs/Widgets/ctkSliderWidget.cpp."""

    valueChanged = Signal(float)
    _TICKS = 1000

    def __init__(self, parent=None):
        super().__init__(parent)
        self._number = qt.QDoubleSpinBox(self)
        self._slider = qt.QSlider(Qt.Horizontal, self)
        self._slider.setRange(0, self._TICKS)
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider, 1)
        row.addWidget(self._number)
        self._number.valueChanged.connect(self._numberChanged)
        self._slider.sliderMoved.connect(self._sliderMoved)

    def _sliderMoved(self, tick):
        self._number.setValue(self.minimum + tick / self._TICKS * (self.maximum - self.minimum))

    def _numberChanged(self, value):
        span = self.maximum - self.minimum
        self._slider.setValue(int(self._TICKS * (value - self.minimum) / span) if span else 0)
        self.valueChanged.emit(value)

    value = Property(float, lambda self: self._number.value, lambda self, v: self._number.setValue(v))
    minimum = Property(float, lambda self: self._number.minimum, lambda self, v: self._number.setMinimum(v))
    maximum = Property(float, lambda self: self._number.maximum, lambda self, v: self._number.setMaximum(v))
    singleStep = Property(float, lambda self: self._number.singleStep, lambda self, v: self._number.setSingleStep(v))
    decimals = Property(int, lambda self: self._number.decimals, lambda self, v: self._number.setDecimals(v))
    suffix = Property(str, lambda self: self._number.suffix, lambda self, v: self._number.setSuffix(v))


@_register
class ctkPathLineEdit(qt.QWidget):
    """A path with a browse button (which does nothing here).

    As CTK's Libs/Widgets/ctkPathLineEdit.cpp: `currentPath` is the text as it stands, whether there is such a file or
    not, and every change of it is told at once.
    """

    currentPathChanged = Signal(str)
    Files, Dirs = 1, 2

    def __init__(self, parent=None):
        super().__init__(parent)
        self._edit = qt.QLineEdit(self)
        browse = qt.QToolButton(self)
        browse.setText("…")
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._edit, 1)
        row.addWidget(browse)
        self._edit.textChanged.connect(self.currentPathChanged)

    currentPath = Property(str, lambda self: self._edit.text, lambda self, v: self._edit.setText(v))
    settingKey = Property(str, lambda self: "", lambda self, v: None)
    filters = Property(int, lambda self: 0, lambda self, v: None)

    def setCurrentPath(self, path):
        self._edit.setText(path)

    def addCurrentPathToHistory(self):
        pass


# Named by Slicer's own connectors between parameters and widgets; the module does not use them.
for _name, _base in {
    "ctkCheckBox": qt.QCheckBox,
    "ctkComboBox": qt.QComboBox,
    "ctkMessageBox": qt.QMessageBox,
    "ctkCheckablePushButton": qt.QPushButton,
    "ctkRangeWidget": qt.QWidget,
    "ctkDoubleRangeSlider": qt.QWidget,
    "ctkDirectoryButton": qt.QPushButton,
    "ctkColorPickerButton": qt.QPushButton,
    "ctkDoubleSlider": ctkSliderWidget,
    "ctkDoubleSpinBox": qt.QDoubleSpinBox,
}.items():
    globals()[_name] = _register(type(_name, (_base,), {"__module__": "ctk"}))
