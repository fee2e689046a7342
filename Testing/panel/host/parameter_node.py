"""Stand-in for ``slicer.parameterNodeWrapper``: typed access to a parameter node and binding to widgets.

The same names are stored in the node as Slicer does, and the same combinations of type and widget are accepted:
a combo box for a string needs ``Choice``, spin boxes and sliders take their limits from ``WithinRange``.
"""

import typing
from dataclasses import dataclass

import slicer
import vtk


@dataclass
class WithinRange:
    minimum: float
    maximum: float

    def validate(self, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within {self.minimum} and {self.maximum}")


class Choice:
    def __init__(self, choices):
        self.choices = list(choices)

    def validate(self, value):
        if value not in self.choices:
            raise ValueError(f"{value!r} is none of {self.choices}")


@dataclass
class _Parameter:
    name: str
    kind: type
    annotations: tuple
    default: object

    def write(self, node, value):
        if issubclass(self.kind, slicer.vtkMRMLNode):
            if not (value is None or isinstance(value, self.kind)):
                raise TypeError(f"{value} is no {self.kind.__name__}")
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
            return
        if not isinstance(value, (float, int) if self.kind is float else self.kind):
            raise TypeError(f"{value!r} is no {self.kind.__name__}")
        for annotation in self.annotations:
            annotation.validate(value)
        node.SetParameter(self.name, str(value))

    def read(self, node):
        if issubclass(self.kind, slicer.vtkMRMLNode):
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        return text == "True" if self.kind is bool else self.kind(text)


def parameterNodeWrapper(cls):
    """Class decorator: annotated members become properties over a parameter node."""
    parameters = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        kind, annotations = hint, ()
        if typing.get_origin(hint) is typing.Annotated:
            kind, *annotations = typing.get_args(hint)
        empty = None if issubclass(kind, slicer.vtkMRMLNode) else kind()
        parameters[name] = _Parameter(name, kind, tuple(annotations), getattr(cls, name, empty))
        setattr(cls, name, _property(parameters[name]))

    def start(self, node):
        self.parameterNode = node
        self._bound, self._updating = {}, False
        for parameter in parameters.values():
            if not node.HasParameter(parameter.name):
                parameter.write(node, parameter.default)

    cls.__init__ = start
    cls.allParameters = parameters
    cls.connectGui = _connect_gui
    cls.disconnectGui = _disconnect_gui
    cls.StartModify = lambda self: self.parameterNode.StartModify()
    cls.EndModify = lambda self, modified: self.parameterNode.EndModify(modified)
    cls.AddObserver = lambda self, event, call, priority=0.0: self.parameterNode.AddObserver(event, call, priority)
    cls.RemoveObserver = lambda self, tag: self.parameterNode.RemoveObserver(tag)
    return cls


def _property(parameter):
    return property(
        lambda self: parameter.read(self.parameterNode),
        lambda self, value: parameter.write(self.parameterNode, value),
    )


def _connect_gui(self, gui):
    import ctk
    import qt

    bound = {}
    for widget in gui.__dict__.values():
        name = widget.property("SlicerParameterName")
        if name:
            bound[name] = _bind(widget, self.allParameters[name], qt, ctk)
    tag = len(self._bound)
    self._bound[tag] = bound

    def to_widgets(*_):
        if self._updating:
            return
        self._updating = True
        try:
            for name, (_, write, _) in self._bound.get(tag, {}).items():
                write(getattr(self, name))
        finally:
            self._updating = False

    for name, (read, write, signal) in bound.items():
        write(getattr(self, name))

        def to_node(*_, name=name, read=read):
            if not self._updating and tag in self._bound:
                with slicer.util.NodeModify(self):
                    setattr(self, name, read())

        signal.connect(to_node)
    self.AddObserver(vtk.vtkCommand.ModifiedEvent, to_widgets)
    return tag


def _disconnect_gui(self, tag):
    self._bound.pop(tag, None)


def _bind(widget, parameter, qt, ctk):
    kind = parameter.kind
    limits = next((each for each in parameter.annotations if isinstance(each, WithinRange)), None)
    choice = next((each for each in parameter.annotations if isinstance(each, Choice)), None)
    if type(widget) is slicer.qMRMLNodeComboBox and issubclass(kind, slicer.vtkMRMLNode):
        widget.nodeTypes = [kind.__name__]
        return widget.currentNode, widget.setCurrentNode, widget.currentNodeChanged
    if kind is bool and type(widget) in (qt.QCheckBox, qt.QPushButton):
        signal = widget.stateChanged if type(widget) is qt.QCheckBox else widget.toggled
        return lambda: widget.checked, lambda value: setattr(widget, "checked", value), signal
    sliders = (qt.QSlider, qt.QSpinBox) if kind is int else (qt.QDoubleSpinBox, ctk.ctkSliderWidget)
    if kind in (int, float) and type(widget) in sliders:
        if limits:
            widget.minimum, widget.maximum = limits.minimum, limits.maximum
        return lambda: widget.value, lambda value: setattr(widget, "value", value), widget.valueChanged
    if kind is str and type(widget) is qt.QComboBox and choice:
        widget.clear()
        for each in choice.choices:
            widget.addItem(str(each))
        return (
            lambda: choice.choices[widget.currentIndex],
            lambda value: setattr(widget, "currentIndex", choice.choices.index(value)),
            widget.currentIndexChanged,
        )
    raise RuntimeError(f"Unable to create GUI connector from datatype '{kind}' to widget type '{type(widget)}'")
