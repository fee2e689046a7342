"""Reads Python code without running it and complains about names that Slicer, Qt or CTK do not have.

Types are followed as far as this code needs: widgets of the .ui file by their name, objects made with ``qt.X(...)`` or
got from ``slicer.app``, and variables and attributes that hold one of these. What is of unknown type is left alone.
PythonQt's rules hold: a property is no method, a method without parentheses is a mistake, a signal is connected by its
exact signature.
"""

import ast
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import slicer
import slicer.util
import slicer_api
from PySide6 import QtCore, QtGui, QtWidgets

# What methods of Slicer return, so that the check goes on behind them.
RETURNS = {
    ("qSlicerApplication", "layoutManager"): "qSlicerLayoutManager",
    ("qSlicerApplication", "userSettings"): "QSettings",
    ("qSlicerApplication", "applicationLogic"): "vtkSlicerApplicationLogic",
    ("qSlicerLayoutManager", "sliceWidget"): "qMRMLSliceWidget",
    ("qSlicerLayoutManager", "layoutLogic"): "vtkMRMLLayoutLogic",
    ("qMRMLSliceWidget", "sliceLogic"): "vtkMRMLSliceLogic",
    ("qMRMLSliceWidget", "sliceView"): "qMRMLSliceView",
}
UI_NAMES = ("ui", "_ui")


def qt_class(name: str) -> type | None:
    return next((found for module in (QtCore, QtGui, QtWidgets) if (found := getattr(module, name, None))), None)


def is_known(name: str) -> bool:
    return bool(name in slicer_api.CLASSES or qt_class(name) or hasattr(slicer, name))


def properties(name: str) -> dict[str, bool]:
    """Properties of a class of Qt, CTK or Slicer, and whether each can be written."""
    if name in slicer_api.CLASSES:
        base, _header, _names, _signals, own = slicer_api.CLASSES[name]
        return properties(base) | dict.fromkeys(own.split(), True)
    meta = getattr(qt_class(slicer_api.QT_BASES.get(name, name)), "staticMetaObject", None)
    found = [meta.property(number) for number in range(meta.propertyCount())] if meta else []
    return {each.name(): each.isWritable() for each in found}


def signals(name: str) -> set[str]:
    if name in slicer_api.CLASSES:
        base, _header, _names, own, _properties = slicer_api.CLASSES[name]
        return signals(base) | set(own.split())
    meta = getattr(qt_class(slicer_api.QT_BASES.get(name, name)), "staticMetaObject", None)
    found = [meta.method(number) for number in range(meta.methodCount())] if meta else []
    signal = QtCore.QMetaMethod.MethodType.Signal
    return {bytes(each.methodSignature().data()).decode() for each in found if each.methodType() == signal}


def has(name: str, attribute: str) -> bool:
    if name in slicer_api.CLASSES:
        base, _header, names, own_signals, own = slicer_api.CLASSES[name]
        own_names = {*names.split(), *own.split(), *(signal.partition("(")[0] for signal in own_signals.split())}
        return attribute in own_names or has(base, attribute)
    if attribute in ("connect", "disconnect", "delete", "name"):  # PythonQt gives these to every QObject
        return True
    owner = getattr(slicer, name, None) or qt_class(slicer_api.QT_BASES.get(name, name))
    return hasattr(owner, attribute) or attribute in properties(name)


def widgets_of(ui_file: Path) -> dict[str, str]:
    """Class by name of all widgets and layouts of a .ui file."""
    tree = ET.parse(ui_file)
    return {each.get("name"): each.get("class") for kind in ("widget", "layout") for each in tree.iter(kind)}


class Check:
    """All complaints about one file are in ``complaints``."""

    def __init__(self, code: str, widgets: dict[str, str], name: str = "code"):
        self.name, self.widgets, self.complaints = name, widgets, []
        self.attributes: dict[tuple[ast.AST | None, str], str] = {}
        tree = ast.parse(code)
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self.scopes: dict[ast.AST, dict[str, str]] = {}
        for _ in range(2):  # twice, as a variable may be used above the line that tells its type
            for node in ast.walk(tree):
                if isinstance(node, ast.Assign) and (kind := self.type_of(node.value)):
                    for target in node.targets:
                        self._remember(target, kind)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                self._check_attribute(node)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self._check_import(node)
            elif isinstance(node, ast.Call):
                self._check_call(node)

    def _complain(self, node: ast.AST, text: str) -> None:
        self.complaints.append(f"{self.name}:{node.lineno}: {text}")

    def _scope(self, node: ast.AST) -> dict[str, str]:
        while node in self.parents and not isinstance(node, ast.FunctionDef | ast.Lambda):
            node = self.parents[node]
        return self.scopes.setdefault(node, {})

    def _class(self, node: ast.AST) -> ast.AST | None:
        while node is not None and not isinstance(node, ast.ClassDef):
            node = self.parents.get(node)
        return node

    def _remember(self, target: ast.AST, kind: str) -> None:
        if isinstance(target, ast.Name):
            self._scope(target)[target.id] = kind
        elif isinstance(target, ast.Attribute) and ast.unparse(target.value) in ("self", "cls"):
            self.attributes[self._class(target), target.attr] = kind

    def _is_ui(self, node: ast.AST) -> bool:
        return (isinstance(node, ast.Name) and node.id in UI_NAMES) or (
            isinstance(node, ast.Attribute) and node.attr in UI_NAMES
        )

    def widgets_named(self, node: ast.AST) -> list[str] | None:
        """Names that ``ui.name`` or ``getattr(ui, f"...")`` can stand for; None if it is neither."""
        if isinstance(node, ast.Attribute) and self._is_ui(node.value):
            pattern = re.escape(node.attr)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "getattr"
            and self._is_ui(node.args[0])
            and isinstance(node.args[1], ast.JoinedStr)
        ):
            parts = node.args[1].values
            pattern = "".join(re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+" for part in parts)
        else:
            return None
        return [name for name in self.widgets if re.fullmatch(pattern, name)]

    def type_of(self, node: ast.AST) -> str | None:
        """Name of the class of an expression, None if it is not known."""
        if (named := self.widgets_named(node)) is not None:
            return self.widgets[named[0]] if named else None
        if isinstance(node, ast.Name):
            return self._scope(node).get(node.id)
        text = ast.unparse(node)
        if text == "slicer.mrmlScene":
            return "vtkMRMLScene"
        if text == "slicer.app":
            return slicer_api.APPLICATION_CLASS
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
            return self.attributes.get((self._class(node), node.attr))
        if isinstance(node, ast.IfExp):
            return self.type_of(node.body)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, method = node.func.value, node.func.attr
            if isinstance(owner, ast.Name) and owner.id in ("qt", "ctk", "slicer") and is_known(method):
                return method
            return RETURNS.get((self.type_of(owner), method))
        return None

    def _check_attribute(self, node: ast.Attribute) -> None:
        named = self.widgets_named(node)
        if named == [] and not isinstance(node.ctx, ast.Store):
            self._complain(node, f"the .ui file has no widget {node.attr}")
        root = ast.unparse(node.value)
        if root == "qt" and qt_class(node.attr) is None:
            self._complain(node, f"Qt has no {node.attr}")
        elif root == "ctk" and node.attr not in slicer_api.CLASSES:
            self._complain(node, f"ctk.{node.attr} is not in slicer_api.py")
        elif (
            root == "slicer" and not hasattr(slicer, node.attr) and node.attr not in slicer_api.APPLICATION_ONLY.split()
        ):
            self._complain(node, f"slicer has no {node.attr}")
        elif root == "slicer.util" and not hasattr(slicer.util, node.attr):
            self._complain(node, f"slicer.util has no {node.attr}")
        elif root in slicer_api.MODULES and node.attr not in slicer_api.MODULES[root].split():
            self._complain(node, f"{root} has no {node.attr}")
        elif root.startswith(("qt.Q", "slicer.vtk")) and root.count(".") == 1:
            owner = root.partition(".")[2]
            if is_known(owner) and not has(owner, node.attr):
                self._complain(node, f"{owner} has no {node.attr}")
        elif kind := self.type_of(node.value):
            self._check_member(node, kind)

    def _check_member(self, node: ast.Attribute, kind: str) -> None:
        attribute, parent = node.attr, self.parents.get(node)
        if not has(kind, attribute):
            self._complain(node, f"{kind} has no {attribute}")
            return
        if hasattr(slicer, kind):
            return
        called = isinstance(parent, ast.Call) and parent.func is node
        known = properties(kind)
        if attribute in known and called:
            self._complain(node, f"{kind}.{attribute} is a property, not a method")
        elif isinstance(node.ctx, ast.Store) and not known.get(attribute):
            self._complain(node, f"{kind}.{attribute} is no property that can be set")
        is_signal = attribute in {each.partition("(")[0] for each in signals(kind)}
        if self._is_value(node) and attribute not in known and not is_signal:
            self._complain(node, f"{kind}.{attribute} is a method and needs parentheses")

    def _is_value(self, node: ast.Attribute) -> bool:
        """Whether what is read is compared, tested or kept, and not called or handed on as a callback."""
        parent, child = self.parents.get(node), node
        while isinstance(parent, ast.BoolOp | ast.UnaryOp):
            parent, child = self.parents.get(parent), parent
        if isinstance(parent, ast.Assign):
            return child is node and parent.value is node
        return isinstance(parent, ast.Compare) or child is getattr(parent, "test", None)

    def _check_call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and self.widgets_named(node) == []:
            self._complain(node, f"the .ui file has no widget for {ast.unparse(node.args[1])}")
        if not (isinstance(node.func, ast.Attribute) and node.func.attr == "connect" and node.args):
            return
        kind, first = self.type_of(node.func.value), node.args[0]
        if (
            kind
            and isinstance(first, ast.Constant)
            and isinstance(first.value, str)
            and first.value not in signals(kind)
        ):
            self._complain(node, f"{kind} has no signal {first.value}")

    def _check_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.startswith("slicer.") and each.name not in (*slicer_api.MODULES, "slicer.util"):
                    self._complain(node, f"there is no module {each.name}")
        elif node.module == "slicer":
            for each in node.names:
                if not hasattr(slicer, each.name) and each.name not in slicer_api.APPLICATION_ONLY.split():
                    self._complain(node, f"slicer has no {each.name}")
        elif node.module == "slicer.util":
            for each in node.names:
                if not hasattr(slicer.util, each.name):
                    self._complain(node, f"slicer.util has no {each.name}")
        elif node.module in slicer_api.MODULES:
            for each in node.names:
                if each.name not in slicer_api.MODULES[node.module].split():
                    self._complain(node, f"{node.module} has no {each.name}")
        elif node.module and node.module.startswith("slicer."):
            self._complain(node, f"there is no module {node.module}")


def check_ui(ui_file: Path) -> Iterator[str]:
    """Complaints about classes and properties that the .ui file uses."""
    for widget in ET.parse(ui_file).iter("widget"):
        kind = widget.get("class")
        if not is_known(kind):
            yield f"{widget.get('name')}: there is no class {kind}"
            continue
        for each in widget.findall("property"):
            name = each.get("name")
            # A buddy is what Qt Designer calls a label's neighbour; "stdset" marks dynamic properties.
            dynamic = name in ("buddy", "SlicerParameterName") or each.get("stdset") == "0"
            if not dynamic and not properties(kind).get(name):
                yield f"{widget.get('name')}: {kind} has no property {name} that can be set"
