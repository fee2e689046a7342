"""Puts the stand-ins in place of what Slicer's application would bring, and opens the module's widget."""

import importlib.util
import os
import sys
import time
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import psutil
import slicer
import slicer.util
from PySide6 import QtCore, QtUiTools, QtWidgets

from . import parameter_node, pythonqt, widgets
from .layout import LayoutManager

MODULE = "MissingModalitySynth"
MODULE_FILE = Path(__file__).resolve().parents[3] / MODULE / f"{MODULE}.py"


class Settings:
    """QSettings that are forgotten."""

    def __init__(self):
        self._values = {}

    def value(self, key, default=None):
        return self._values.get(key, default)

    def setValue(self, key, value):
        self._values[key] = value


class _Application:
    """What the module uses of ``slicer.app``."""

    def __init__(self, qt_application, application_logic, module_logics):
        self._qt = qt_application
        self._logics = (application_logic, module_logics)  # the scene only refers to them
        self._layout_manager = LayoutManager(application_logic)
        self._settings = Settings()
        self._quitting = []
        self.applicationVersion = "5.13.0"
        self.slicerHome = str(Path(sys.executable).parent)

    def processEvents(self):
        self._qt.processEvents()

    def userSettings(self):
        return self._settings

    def translate(self, _context, text):
        return text

    def layoutManager(self):
        return self._layout_manager

    def applicationLogic(self):
        return self._logics[0]

    def testingEnabled(self):
        return False

    def moduleManager(self):
        return self

    def connect(self, signature, function):
        if signature == "aboutToQuit()":
            self._quitting.append(function)
        return True

    def disconnect(self, signature, function):
        if signature == "aboutToQuit()" and function in self._quitting:
            self._quitting.remove(function)
        return True

    def quit(self):
        """What happens when the user closes the window."""
        for function in list(self._quitting):
            function()


class ScriptedLoadableModule:
    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__

    def resourcePath(self, filename):
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def getDefaultModuleDocumentationLink(self, _page=None):
        return ""


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self.cleanup)

    def resourcePath(self, filename):
        return str(MODULE_FILE.parent / "Resources" / filename)

    def setup(self):
        pass

    def cleanup(self):
        pass


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self):
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag(self.moduleName)
            node.SetModuleName(self.moduleName)
            node.SetAttribute("ModuleName", self.moduleName)
            node = slicer.mrmlScene.AddNode(node)
        return node


class ScriptedLoadableModuleTest:
    pass


class _Loader(QtUiTools.QUiLoader):
    """Qt's loader with the stand-ins; a class that is none of them is refused, as by Slicer."""

    def createWidget(self, class_name, parent=None, name=""):
        stand_in = pythonqt._stand_ins.get(class_name)
        if stand_in is None:
            if class_name.startswith(("ctk", "qMRML", "qSlicer")):
                raise RuntimeError(f"The host has no stand-in for {class_name}.")
            return super().createWidget(class_name, parent, name)
        made = stand_in(parent)
        made.setObjectName(name)
        return made


def load_ui(path):
    """``slicer.util.loadUI``: connections of the scene are made as the file says, others are refused."""
    tree = ET.parse(path)
    root = tree.getroot()
    found = root.find("connections")
    wanted = []
    for connection in found if found is not None else ():
        wanted.append([connection.findtext(tag) for tag in ("sender", "signal", "receiver", "slot")])
    if found is not None:
        root.remove(found)
    buffer = QtCore.QBuffer()
    buffer.setData(ET.tostring(root))
    loader = _Loader()
    widget = loader.load(buffer)
    if widget is None:
        raise RuntimeError(f"Could not load UI file: {path}")
    for sender, signal, receiver, slot in wanted:
        if (sender, signal, slot) != (
            widget.objectName(),
            "mrmlSceneChanged(vtkMRMLScene*)",
            "setMRMLScene(vtkMRMLScene*)",
        ):
            raise RuntimeError(f"The host does not know the connection {sender}.{signal} to {receiver}.{slot}.")
        widget._sceneChanged.connect(widget.findChild(QtWidgets.QWidget, receiver).setMRMLScene)
    return pythonqt.wrap(widget)


def child_widget_variables(widget):
    """``slicer.util.childWidgetVariables``: also layouts and Qt's own children."""
    ui = types.SimpleNamespace()
    for child in widget.findChildren():
        if name := child.objectName:
            if not hasattr(ui, name):
                setattr(ui, name, child)
    return ui


def _application_logic():
    """The application logic with a scene, and the logics of the modules that the scene relies on."""
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerApplicationLogic()
    logics = {
        "Colors": slicer.vtkSlicerColorLogic(),
        "Volumes": slicer.vtkSlicerVolumesLogic(),
        "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic(),
        "SubjectHierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic(),
    }
    for name, module in logics.items():
        logic.SetModuleLogic(name, module)
        module.SetMRMLApplicationLogic(logic)
    logic.SetMRMLScene(scene)
    for module in logics.values():
        module.SetMRMLScene(scene)
    return logic, logics


def install():
    """``qt``, ``ctk``, ``slicer.app`` and the rest that slicer-core does not have, over one scene; once a process."""
    application_logic, module_logics = _application_logic()
    qt_application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["host"])
    sys.modules["qt"] = pythonqt.QtModule()
    sys.modules["ctk"] = pythonqt.StandInModule("ctk", widgets.CTK)
    pythonqt.StandInModule("slicer", widgets.SLICER)
    for stand_in in widgets.SLICER:
        setattr(slicer, stand_in.__name__, pythonqt.class_of(stand_in))
    slicer.app = _Application(qt_application, application_logic, module_logics)
    slicer.mrmlScene = application_logic.GetMRMLScene()
    slicer.modules = types.SimpleNamespace()
    slicer.util.loadUI = load_ui
    slicer.util.childWidgetVariables = child_widget_variables
    slicer.util.modulePath = lambda _name: str(MODULE_FILE)
    slicer.util.startupEnvironment = lambda: dict(os.environ)
    _module("slicer.ScriptedLoadableModule", globals(), "ScriptedLoadableModule")
    parts = {name: getattr(parameter_node, name) for name in ("parameterNodeWrapper", "WithinRange", "Choice")}
    _module("slicer.parameterNodeWrapper", parts)
    _module("slicer.packaging", {"isPipInstallInProgress": lambda: False})
    _module("slicer.i18n", {"tr": lambda text: text, "translate": lambda _context, text: text})
    return slicer.app


def _module(name, content, prefix=""):
    module = types.ModuleType(name)
    chosen = {key: value for key, value in content.items() if key.startswith(prefix)}
    module.__dict__.update(chosen)
    module.__all__ = list(chosen)
    sys.modules[name] = module
    setattr(slicer, name.rpartition(".")[2], module)


def load_module():
    """The module's file, imported anew."""
    spec = importlib.util.spec_from_file_location(MODULE, MODULE_FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    return module


def open_widget(module):
    """The module's widget, set up in a top-level widget as the module panel does."""
    import qt

    parent = slicer.qMRMLWidget()
    parent.setLayout(qt.QVBoxLayout())
    parent.setMRMLScene(slicer.mrmlScene)
    widget = getattr(module, f"{MODULE}Widget")(parent)
    widget.setup()
    return widget


def close(widget):
    """Unload the module, and wait until its worker has gone."""
    widget.cleanup()
    end = time.monotonic() + 5
    while psutil.Process().children() and time.monotonic() < end:
        slicer.app.processEvents()
        time.sleep(0.01)
