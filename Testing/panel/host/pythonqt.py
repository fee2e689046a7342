"""PySide6 objects with the manners of PythonQt, as far as the panel can meet them.

Qt properties are attributes, not methods; signals connect by name or by ``connect("name(types)", f)``; unknown names
raise AttributeError, on writing too; keyword arguments and wrong argument lists raise ValueError; lists come back as
tuples; wrapper classes do not inherit from each other; enumerations are numbers without a name.
"""

import ctypes
import enum
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakValueDictionary

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets
from shiboken6 import Shiboken

if sys.version_info < (3, 12):
    # PySide6 6.12 gives None and the two bools away without counting, as is right where they are immortal.
    for immortal in (None, True, False):
        ctypes.c_ssize_t.from_address(id(immortal)).value += 1 << 40

_MODULES = (QtCore, QtGui, QtWidgets, QtUiTools)
_classes: dict[type, type] = {}
_stand_ins: dict[str, type] = {}
_living: WeakValueDictionary = WeakValueDictionary()


class Number(int):
    """A value of a Qt enumeration: a number for Python, the enumeration's member for Qt."""

    member: Any

    @classmethod
    def of(cls, member: Any) -> "Number":
        number = cls(member.value if isinstance(member.value, int) else 0)
        number.member = member
        return number

    def __or__(self, other: int) -> "Number":
        return Number.of(self.member | other.member)


class WrapperType(type):
    """Classes of PythonQt: enumerations, static methods and ``Class(...)`` are all that they offer."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_") or "qt_class" not in cls.__dict__:
            raise AttributeError(name)
        try:
            value = getattr(cls.qt_class, name)
        except AttributeError:
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'") from None
        if isinstance(value, enum.Enum):
            return Number.of(value)
        if inspect.isclass(value):
            return class_of(value)
        return _method(value, f"{cls.__name__}.{name}")


class Wrapper(metaclass=WrapperType):
    """One Qt object."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        if keywords:
            raise ValueError(f"{type(self).__name__} takes no keyword arguments")
        try:
            made = type(self).qt_class(*(unwrap(each) for each in arguments))
        except TypeError as error:
            raise ValueError(f"Could not find matching overload for {type(self).__name__}: {error}") from None
        _adopt(self, made)

    def __getattr__(self, name: str) -> Any:
        qt_object = _alive(self)
        meta = qt_object.metaObject() if isinstance(qt_object, QtCore.QObject) else None
        name = "objectName" if name == "name" and meta is not None else name
        if meta is not None and meta.indexOfProperty(name) >= 0:
            return wrap(qt_object.property(name))
        value = None if name.startswith("_") else getattr(qt_object, name, None)
        if value is None:
            raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
        if isinstance(value, QtCore.SignalInstance):
            return Signal(qt_object, name)
        if isinstance(value, enum.Enum):
            return Number.of(value)
        return _method(value, f"{type(self).__name__}.{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        qt_object = _alive(self)
        name = "objectName" if name == "name" else name
        if not isinstance(qt_object, QtCore.QObject):
            raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
        meta = qt_object.metaObject()
        index = meta.indexOfProperty(name)
        if index < 0 or not meta.property(index).isWritable():
            raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
        if meta.property(index).typeName() == "QString" and not isinstance(value, str):
            value = str(value)
        if meta.property(index).typeName() == "int" and isinstance(value, float):
            value = int(value)
        qt_object.setProperty(name, unwrap(value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Wrapper) and self._qt is other._qt

    def __hash__(self) -> int:
        return id(self._qt)

    def __bool__(self) -> bool:
        return Shiboken.isValid(self._qt) if isinstance(self._qt, Shiboken.Object) else True

    def __repr__(self) -> str:
        return f"{type(self).__name__} (PythonQt at: {id(self._qt):#x})"

    def connect(self, *arguments: Any) -> bool:
        """``connect("name(types)", f)``; an unknown signature returns False and prints, as PythonQt does."""
        signature, function = arguments
        qt_object = _alive(self)
        normalised = bytes(QtCore.QMetaObject.normalizedSignature(signature)).decode()
        name, _, types = normalised.rstrip(")").partition("(")
        declared = getattr(type(qt_object), "SIGNALS", {})
        if normalised in declared:
            _connect(getattr(qt_object, declared[normalised]), function)
            return True
        if qt_object.metaObject().indexOfSignal(normalised) < 0 or declared.keys() & {normalised}:
            print(f"QObject::connect: No such signal {type(self).__name__}::{normalised}", file=sys.stderr)
            return False
        signal = getattr(qt_object, name)
        _connect(_overload(qt_object, signal, name, types), function)
        return True

    def disconnect(self, *arguments: Any) -> bool:
        signature, function = arguments
        return Signal(_alive(self), signature.partition("(")[0]).disconnect(function)

    def findChildren(self, kind: "type | None" = None) -> tuple:
        """Descendants of a class, a tuple."""
        qt_class = kind.qt_class if kind is not None else QtCore.QObject
        return tuple(wrap(child) for child in _alive(self).findChildren(qt_class))


class ByteArray:
    """QByteArray: ``data()`` gives bytes; len(), bytes() and indexing fail."""

    def __init__(self, content: QtCore.QByteArray | bytes = b"") -> None:
        self._content = bytes(content)

    def data(self) -> bytes:
        return self._content

    def size(self) -> int:
        return len(self._content)

    def isEmpty(self) -> bool:
        return not self._content

    def __str__(self) -> str:
        return str(self._content)

    def __bytes__(self) -> bytes:
        raise TypeError("cannot convert 'QByteArray' object to bytes")


class Signal:
    """A signal by name; of several overloads the one that Qt declares first."""

    def __init__(self, qt_object: QtCore.QObject, name: str) -> None:
        self._signal = getattr(qt_object, name)

    def connect(self, function: Any) -> bool:
        _connect(self._signal, function)
        return True

    def disconnect(self, function: Any) -> bool:
        for key in [key for key in _connections if key[0] == repr(self._signal) and key[1] == function]:
            for signal, slot in _connections.pop(key):
                signal.disconnect(slot)
            return True
        return False


_connections: dict[tuple[str, Any], list] = {}


def _connect(signal: QtCore.SignalInstance, function: Any) -> None:
    """Connect, passing no more arguments than the function takes; connecting twice calls twice."""

    def slot(*arguments: Any) -> None:
        function(*[wrap(each) for each in arguments][: _accepted(function)])

    signal.connect(slot)
    _connections.setdefault((repr(signal), function), []).append((signal, slot))


def _accepted(function: Any) -> int | None:
    if isinstance(function, Wrapper) or not callable(function):
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return None
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)


def _overload(qt_object: QtCore.QObject, signal: QtCore.SignalInstance, name: str, types: str) -> Any:
    meta = qt_object.metaObject()
    methods = [meta.method(index) for index in range(meta.methodCount())]
    overloads = [each for each in methods if bytes(each.name()).decode() == name and each.methodType().name == "Signal"]
    return signal[tuple(types.split(","))] if len(overloads) > 1 and types else signal


def _method(function: Callable, name: str) -> Callable:
    def call(*arguments: Any, **keywords: Any) -> Any:
        if keywords:
            raise ValueError(f"{name} takes no keyword arguments")
        try:
            return wrap(function(*(unwrap(each) for each in arguments)))
        except TypeError as error:
            raise ValueError(f"Could not find matching overload for {name}{arguments}: {error}") from error

    call.__name__ = name
    return call


def _adopt(wrapper: Wrapper, qt_object: Any) -> None:
    object.__setattr__(wrapper, "_qt", qt_object)
    if isinstance(qt_object, QtCore.QObject):
        _living[Shiboken.getCppPointer(qt_object)[0]] = wrapper


def _alive(wrapper: Wrapper) -> Any:
    if not wrapper:
        raise ValueError(f"Trying to access a member of a deleted {type(wrapper).__name__}")
    return wrapper._qt


def class_of(qt_class: type) -> type:
    """PythonQt's class for one of Qt."""
    if qt_class not in _classes:
        name = getattr(qt_class, "stands_for", qt_class.__name__)
        _classes[qt_class] = WrapperType(name, (Wrapper,), {"qt_class": qt_class})
    return _classes[qt_class]


def wrap(value: Any) -> Any:
    """From Qt to Python."""
    if isinstance(value, QtCore.QByteArray):
        return ByteArray(value)
    if isinstance(value, enum.Enum):
        return Number.of(value)
    if isinstance(value, QtCore.QObject):
        known = _living.get(Shiboken.getCppPointer(value)[0])
        if known is not None and known._qt is value:
            return known
    if isinstance(value, Shiboken.Object):
        wrapper = object.__new__(class_of(type(value)))
        _adopt(wrapper, value)
        return wrapper
    if isinstance(value, list):
        return tuple(wrap(each) for each in value)
    return value


def unwrap(value: Any) -> Any:
    """From Python to Qt."""
    if isinstance(value, Wrapper):
        return value._qt
    if isinstance(value, ByteArray):
        return QtCore.QByteArray(value.data())
    if isinstance(value, Number):
        return value.member
    if type(value).__module__ == "numpy":
        if value.dtype.kind not in "iub":
            raise TypeError(f"a {type(value).__name__} is no argument for Qt")
        return value.item()
    if isinstance(value, (list, tuple)):
        return [unwrap(each) for each in value]
    return value


class QtModule:
    """What ``import qt`` gives: every class of Qt under its plain name."""

    def __getattr__(self, name: str) -> Any:
        for module in _MODULES:
            found = getattr(module, name, None)
            if inspect.isclass(found):
                return class_of(found)
        raise AttributeError(f"module 'qt' has no attribute '{name}'")


class StandInModule:
    """A module of stand-ins such as ``ctk``; other classes are unknown."""

    def __init__(self, name: str, stand_ins: Iterable[type]) -> None:
        self._name = name
        for each in stand_ins:
            _stand_ins[each.__name__] = each
            setattr(self, each.__name__, class_of(each))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module '{self._name}' has no attribute '{name}'")
