"""Own substitute for ``slicer.parameterNodeWrapper``: typed attributes kept in a parameter node, and bound to widgets.

As Base/Python/slicer/parameterNodeWrapper/wrapper.py and guiConnectors.py, as far as the module asks.

Types: bool, int, float, str, Enum, a MRML node class, a Union of node classes and None.  Annotations: WithinRange,
Choice.  Values are checked on writing.  Widgets are found by their ``SlicerParameterName`` property.
"""

from __future__ import annotations

import enum
import typing

import qt
import slicer
import vtk

__all__ = ["Choice", "WithinRange", "parameterNodeWrapper"]


class WithinRange:
    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"expected a value from {self.minimum} to {self.maximum}, got {value}")


class Choice:
    def __init__(self, choices):
        self.choices = list(choices)

    def validate(self, value):
        if value not in self.choices:
            raise ValueError(f"expected one of {self.choices}, got {value!r}")


class _Parameter:
    """Reads and writes one parameter."""

    def __init__(self, name, annotated, default):
        self.name = name
        self.type = annotated
        self.annotations = ()
        if typing.get_origin(annotated) is typing.Annotated:
            self.type, *self.annotations = typing.get_args(annotated)
        members = typing.get_args(self.type) if typing.get_origin(self.type) is typing.Union else (self.type,)
        self.nodeClasses = tuple(m for m in members if isinstance(m, type) and issubclass(m, slicer.vtkMRMLNode))
        self.default = default

    def firstValue(self):
        """The default where the class gives none."""
        if self.nodeClasses:
            return None
        return next(iter(self.type)) if issubclass(self.type, enum.Enum) else self.type()

    def isIn(self, node):
        return bool(node.HasParameter(self.name))

    def write(self, node, value):
        for annotation in self.annotations:
            annotation.validate(value)
        expected = (*self.nodeClasses, type(None)) if self.nodeClasses else self.type
        if not isinstance(value, expected) or (isinstance(value, bool) and self.type is not bool):
            raise TypeError(f"{self.name}: expected {expected}, got {value!r}")
        modifying = node.StartModify()
        if self.nodeClasses:
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
        else:
            node.SetParameter(self.name, value.name if isinstance(value, enum.Enum) else str(value))
        node.EndModify(modifying)

    def read(self, node):
        if self.nodeClasses:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if self.type is bool:
            return text == "True"
        return self.type[text] if issubclass(self.type, enum.Enum) else self.type(text)


def parameterNodeWrapper(cls):
    parameters = {}
    for name, annotated in typing.get_type_hints(cls, include_extras=True).items():
        parameter = parameters[name] = _Parameter(name, annotated, None)
        parameter.default = getattr(cls, name) if hasattr(cls, name) else parameter.firstValue()
        setattr(
            cls,
            name,
            property(
                lambda self, p=parameter: p.read(self.parameterNode),
                lambda self, value, p=parameter: p.write(self.parameterNode, value),
            ),
        )

    def initialize(self, parameterNode):
        self.parameterNode = parameterNode
        self._bindings, self._nextTag = {}, 0
        for parameter in parameters.values():
            if not parameter.isIn(parameterNode):
                parameter.write(parameterNode, parameter.default)

    def connectGui(self, gui):
        binding = _Binding(
            self.parameterNode,
            [
                (parameters[name], widget)
                for widget in vars(gui).values()
                if (name := widget.property("SlicerParameterName"))
            ],
        )
        self._nextTag += 1
        self._bindings[self._nextTag] = binding
        return self._nextTag

    def disconnectGui(self, tag):
        binding = self._bindings.pop(tag, None)
        if binding:
            binding.disconnect()

    cls.__init__, cls.connectGui, cls.disconnectGui = initialize, connectGui, disconnectGui
    cls.allParameters = parameters
    for name in ("AddObserver", "RemoveObserver", "StartModify", "EndModify", "Modified"):
        setattr(cls, name, lambda self, *arguments, n=name: getattr(self.parameterNode, n)(*arguments))
    return cls


class _Binding:
    """Keeps widgets and parameters equal, both ways, until disconnected."""

    def __init__(self, node, pairs):
        self._node, self._updating, self._connections = node, False, []
        for parameter, widget in pairs:
            read, write, signal = _access(parameter, widget)
            write(parameter.read(node))

            def changed(*_ignored, parameter=parameter, read=read):
                if not self._updating:
                    parameter.write(node, read())

            signal.connect(changed)
            self._connections.append((parameter, write, signal, changed))
        self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._update())

    def _update(self):
        if self._updating:
            return
        self._updating = True
        try:
            for parameter, write, _signal, _changed in self._connections:
                write(parameter.read(self._node))
        finally:
            self._updating = False

    def disconnect(self):
        for _parameter, _write, signal, changed in self._connections:
            signal.disconnect(changed)
        self._node.RemoveObserver(self._tag)


def _access(parameter, widget):
    """(read, write, signal of change) of a widget that holds that parameter."""
    ranges = [a for a in parameter.annotations if isinstance(a, WithinRange)]
    if parameter.nodeClasses:
        widget.nodeTypes = tuple(cls().GetClassName() for cls in parameter.nodeClasses)
        return widget.currentNode, widget.setCurrentNode, widget.currentNodeChanged
    if parameter.type is bool:
        return (lambda: widget.checked), (lambda value: setattr(widget, "checked", value)), widget.toggled
    if parameter.type is str:

        def writeText(value):
            if value != widget.text:
                widget.text = value

        return (lambda: widget.text), writeText, widget.textChanged
    if isinstance(parameter.type, type) and issubclass(parameter.type, enum.Enum):
        choices = list(parameter.type)
        widget.clear()
        for choice in choices:
            widget.addItem(choice.label() if hasattr(choice, "label") else choice.name)
        return (
            (lambda: choices[widget.currentIndex]),
            (lambda value: setattr(widget, "currentIndex", choices.index(value))),
            widget.currentIndexChanged,
        )
    if isinstance(widget, qt.QSpinBox) and parameter.type is int:
        widget.setRange(ranges[0].minimum, ranges[0].maximum)
        return (lambda: widget.value), (lambda value: setattr(widget, "value", value)), widget.valueChanged
    if parameter.type is float:
        widget.minimum, widget.maximum = ranges[0].minimum, ranges[0].maximum
        return (lambda: widget.value), (lambda value: setattr(widget, "value", value)), widget.valueChanged
    raise RuntimeError(f"no binding of {parameter.name} to a {type(widget).__name__}")
