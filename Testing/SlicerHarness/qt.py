"""PythonQt's ``qt`` module on PySide6.

PythonQt shows Qt properties as Python attributes, keeps the setters as methods, connects with
``obj.connect("signal(args)", slot)`` and knows ``obj.name``.  Every QObject class handed out here is a thin subclass of
PySide6's class that adds those idioms, so the module's code runs unchanged.

As PythonQt's src/PythonQtInstanceWrapper.cpp (attributes), src/PythonQtSlot.cpp and src/PythonQtSignalReceiver.cpp
(signals by their signatures), and the use of QUiLoader in Slicer's
Base/Python/slicer/util.py (loadUI).
"""

from __future__ import annotations

import ctypes
import inspect
import re
import sys
import xml.etree.ElementTree as ElementTree

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets
from PySide6.QtCore import Property, Signal  # noqa: F401

if sys.version_info < (3, 12):
    # PySide6 6.12 is built for Pythons whose None, True and False are immortal: every call that returns one of them
    # takes a reference away, until an older Python ends with "deallocating None".  So give them plenty.
    for _immortal in (None, True, False, NotImplemented):
        ctypes.c_ssize_t.from_address(id(_immortal)).value += 1 << 40

_SOURCES = (QtWidgets, QtGui, QtCore, QtUiTools)
# Qt properties that PythonQt leaves as methods, and two that classes here override as methods.
_METHODS = {"layout", "parent", "sizeHint", "minimumSizeHint"}
_classes = {}

customWidgets = {}
"""Name in a .ui file -> class; filled by ``ctk`` and ``qmrml``."""


class _Idioms:
    """As PythonQt's src/PythonQtInstanceWrapper.cpp and src/PythonQtSlot.cpp: what PythonQt adds to every QObject."""

    def __getattribute__(self, name):
        if not name.startswith("_"):
            # Shiboken looks ``connect`` up on its own; an override in a base class would never be found.
            if name == "connect":
                return _Idioms._connect.__get__(self)
            if name == "disconnect":
                return _Idioms._disconnect.__get__(self)
            properties = _propertiesOf(type(self))
            if name in properties:
                return QtCore.QObject.property(self, properties[name])
        return super().__getattribute__(name)

    def __setattr__(self, name, value):
        properties = _propertiesOf(type(self))
        if name not in properties:
            super().__setattr__(name, value)
        elif not QtCore.QObject.setProperty(self, properties[name], value):
            setter = "set" + properties[name][0].upper() + properties[name][1:]
            getattr(self, setter)(value)

    def _connect(self, signal, *target):
        name, arguments = re.fullmatch(r"(\w+)(?:\((.*)\))?", signal).groups()
        slot = target[0] if callable(target[0]) else getattr(target[0], target[1].split("(")[0])
        if arguments is not None:
            own = _receiver(slot, len(arguments.split(",")) if arguments else 0)
            self.__dict__.setdefault("_wrappedSlots", {})[(name, slot)] = own
            slot = own
        getattr(self, name).connect(slot)
        return True

    def _disconnect(self, signal, *target):
        name = signal.split("(")[0]
        slot = self.__dict__.get("_wrappedSlots", {}).pop((name, target[0]), target[0])
        getattr(self, name).disconnect(slot)
        return True

    def findChildren(self, *arguments, **options):
        return super().findChildren(*map(_native, arguments), **options)

    def findChild(self, *arguments, **options):
        return super().findChild(*map(_native, arguments), **options)

    def className(self):
        return type(self).__name__

    def delete(self):
        self.deleteLater()


def _receiver(slot, count):
    """What the signal calls: passes the arguments that its signature names, at most as many as the slot takes.

    As PythonQt's src/PythonQtSignalReceiver.cpp (PythonQtSignalTarget::call), which looks at the slot's code.
    """
    code = getattr(getattr(slot, "__func__", slot), "__code__", None)
    if code is not None and not code.co_flags & inspect.CO_VARARGS:
        count = min(count, code.co_argcount - hasattr(slot, "__self__"))
    # PySide6 passes as many as the function takes, none to one with *arguments: so a function for each number.
    return (
        lambda *_ignored: slot(),
        lambda first: slot(first),
        lambda first, second: slot(first, second),
        lambda first, second, third: slot(first, second, third),
    )[count]


def _native(argument):
    return getattr(argument, "_nativeClass", argument) if isinstance(argument, type) else argument


def _propertiesOf(cls):
    """{attribute: Qt property}; properties declared in Python keep their own descriptors."""
    found = cls.__dict__.get("_qtProperties")
    if found is None:
        found = {"name": "objectName"}
        meta = cls.staticMetaObject
        for index in range(meta.propertyCount()):
            name = meta.property(index).name()
            owner = next((base for base in cls.__mro__ if name in base.__dict__), None)
            declaredHere = owner is not None and isinstance(owner.__dict__[name], Property)
            if not declaredHere and name not in _METHODS:
                found[name] = name
        cls._qtProperties = found
    return found


class _Meta(type(QtCore.QObject)):
    def __instancecheck__(cls, instance):  # isinstance(a QCheckBox, qt.QWidget)
        native = cls.__dict__.get("_nativeClass")
        return isinstance(instance, native) if native else super().__instancecheck__(instance)


def _firstOf(call):
    return lambda *arguments: call(*arguments)[0]


def wrapped(native):
    """The class of that name with PythonQt's idioms."""
    cls = _classes.get(native.__name__)
    if cls is None:
        cls = _Meta(native.__name__, (_Idioms, native), {"__module__": "qt", "_nativeClass": native})
        if hasattr(native, "exec"):
            cls.exec_ = lambda self, *arguments: native.exec(self, *arguments)
        if native is QtWidgets.QFileDialog:  # PySide6 returns (path, filter), PythonQt the path
            for name in ("getSaveFileName", "getOpenFileName"):
                setattr(cls, name, staticmethod(_firstOf(getattr(native, name))))
        _classes[native.__name__] = cls
    return cls


class QUiLoader(QtUiTools.QUiLoader):
    """As used by Base/Python/slicer/util.py (loadUI): builds .ui files out of the classes above, so that
    ``type(widget) == qt.QPushButton`` holds."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._widgets = []

    def createWidget(self, className, parent=None, name=""):
        cls = customWidgets.get(className)
        if cls is None:
            native = getattr(QtWidgets, className, None)
            if native is None:
                raise NotImplementedError(f"no stand-in for the .ui class {className!r}")
            cls = wrapped(native)
        widget = cls(parent)
        widget.setObjectName(name)
        self._widgets.append(widget)
        return widget

    def load(self, device, parent=None):
        path = device.fileName()
        device.close()
        device.open(QtCore.QIODevice.ReadOnly)
        QtCore.QLoggingCategory.setFilterRules("qt.core.qobject.connect=false")  # for the wires made just below
        widget = super().load(device, parent)
        QtCore.QLoggingCategory.setFilterRules("")
        _connectScene(path, widget)
        widget._keepAlive = self._widgets
        return widget


def _connectScene(path, root):
    """Make the .ui file's ``mrmlSceneChanged(vtkMRMLScene*)`` connections, whose type Qt does not know."""

    def named(name):
        return root if root.objectName == name else root.findChild(QtCore.QObject, name)

    for connection in ElementTree.parse(path).iterfind("connections/connection"):
        signal, slot = connection.findtext("signal"), connection.findtext("slot")
        if "vtkMRML" in signal:
            receiver = named(connection.findtext("receiver"))
            getattr(named(connection.findtext("sender")), signal.split("(")[0]).connect(
                getattr(receiver, slot.split("(")[0])
            )


def __getattr__(name):
    for source in _SOURCES:
        value = getattr(source, name, None)
        if value is not None:
            return wrapped(value) if isinstance(value, type) and issubclass(value, QtCore.QObject) else value
    raise AttributeError(f"qt has no attribute {name!r}")


if not QtWidgets.QApplication.instance():
    _application = wrapped(QtWidgets.QApplication)(sys.argv[:1])
    _application.setStyle("Fusion")
