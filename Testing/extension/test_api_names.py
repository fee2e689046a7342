"""Only what Slicer, Qt and CTK really have is used, nothing that Qt 6 or Python 3.12 and 3.13 removed."""

import ast
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import slicer_api
from api_check import Check, check_ui, has, properties, signals, widgets_of

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "MissingModalitySynth"
UI = MODULE / "Resources" / "UI" / "MissingModalitySynth.ui"
IN_SLICER = [
    MODULE / "MissingModalitySynth.py",
    *sorted((MODULE / "MissingModalitySynthLib").rglob("*.py")),
    *sorted((ROOT / "Testing" / "Python").glob("*.py")),
]
ALL = [*IN_SLICER, *sorted((ROOT / "training").rglob("*.py"))]

# https://docs.python.org/3/whatsnew/3.12.html#removed, https://docs.python.org/3/whatsnew/3.13.html#removed (PEP 594);
# pkg_resources is no part of Python, and setuptools 82, which Slicer brings, has it no more.
REMOVED_MODULES = set(
    "aifc asynchat asyncore audioop cgi cgitb chunk crypt distutils imghdr imp lib2to3 mailcap msilib nis nntplib "
    "ossaudiodev pipes pkg_resources smtpd sndhdr spwd sunau telnetlib uu xdrlib".split()
)
REMOVED_FROM_MODULES = {
    "configparser.SafeConfigParser",
    "importlib.find_loader",
    "importlib.resources.contents",
    "locale.resetlocale",
    "pkgutil.ImpImporter",
    "pkgutil.ImpLoader",
    "sqlite3.enable_shared_cache",
    "ssl.match_hostname",
    "ssl.wrap_socket",
    "tempfile.template",
    "unittest.findTestCases",
    "unittest.makeSuite",
    "webbrowser.MacOSX",
}
# https://doc.qt.io/qt-6/portingguide.html and the lists of obsolete members that it leads to
REMOVED_FROM_QT = set(
    "QDesktopWidget QGLWidget QLinkedList QMatrix QRegExp QRegExpValidator QStringRef QTextCodec QTextDecoder "
    "QTextEncoder MidButton exec_ setMargin setTabStopWidth qrand qsrand AA_EnableHighDpiScaling "
    "AA_UseHighDpiPixmaps".split()
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", IN_SLICER, ids=name_of)
def test_every_name_of_slicer_qt_and_ctk_exists(path):
    check = Check(path.read_text(encoding="utf-8"), widgets_of(UI), name_of(path))
    assert check.complaints == []


def test_the_ui_file_uses_existing_classes_and_properties():
    assert list(check_ui(UI)) == []


def test_the_ui_file_connects_existing_signals():
    widgets = widgets_of(UI)
    for connection in ET.parse(UI).iter("connection"):
        sender, signal = connection.findtext("sender"), connection.findtext("signal")
        assert signal in signals(widgets[sender]), f"{sender}.{signal}"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_nothing_is_used_that_python_312_and_313_or_qt_6_removed(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            used = {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            used = {node.module.partition(".")[0]}
        else:
            used = set()
        assert not used & REMOVED_MODULES, f"{path}:{node.lineno}"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in REMOVED_FROM_MODULES, f"{path}:{node.lineno}"
            assert node.attr not in REMOVED_FROM_QT, f"{path}:{node.lineno}"


def test_the_module_imports_nothing_at_file_scope_that_slicer_does_not_bring():
    tree = ast.parse((MODULE / "MissingModalitySynth.py").read_text(encoding="utf-8"))
    blocks = [tree, *(node for node in tree.body if isinstance(node, ast.Try | ast.If))]
    roots = set()
    for node in (node for block in blocks for node in block.body):
        if isinstance(node, ast.Import):
            roots |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(node.module.partition(".")[0])
    assert roots - sys.stdlib_module_names <= {"slicer", "vtk", "qt", "ctk", "MissingModalitySynthLib"}


SLICERS_PROCESS = [
    path.relative_to(MODULE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for folder in ("scene", "widgets")
    for path in sorted((MODULE / "MissingModalitySynthLib" / folder).glob("*.py"))
] + [
    f"MissingModalitySynthLib.{name}"
    for name in "modality model_package package_store volume volume_io metrics worker.client worker.transports".split()
]


def test_slicers_process_needs_no_package_before_the_first_installation():
    """All that Slicer imports, with the packages made impossible to import that are installed on first use."""
    code = f"""
import importlib, sys

class Absent:
    names = {{"torch", "monai", "einops", "safetensors", "skimage", "matplotlib", "psutil", "tqdm", "platformdirs"}}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
for name in {SLICERS_PROCESS!r}:
    importlib.import_module(name)
from MissingModalitySynthLib.model_package import list_packages
print([row.name for row in list_packages() if row.bundled and row.package])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "micro" in done.stdout


PLANTED = {
    "import slicer\nslicer.vtkMRMLScalarVolumNode()": "slicer has no vtkMRMLScalarVolumNode",
    "from slicer import vtkMRMLNoNode": "slicer has no vtkMRMLNoNode",
    "from slicer.util import noSuchFunction": "slicer.util has no noSuchFunction",
    "from slicer.packing import pip_ensure": "no module slicer.packing",
    "from slicer.packaging import pip_insure": "slicer.packaging has no pip_insure",
    "slicer.util.confirmNothing('x')": "slicer.util has no confirmNothing",
    "slicer.app.layoutManger()": "qSlicerApplication has no layoutManger",
    "slicer.app.layoutManager().sliceWiget('Red')": "qSlicerLayoutManager has no sliceWiget",
    "slicer.app.connect('startupComplete()', f)": "no signal startupComplete()",
    "slicer.mrmlScene.GetNodeByName2('x')": "vtkMRMLScene has no GetNodeByName2",
    "slicer.vtkMRMLScene.NoSuchEvent": "vtkMRMLScene has no NoSuchEvent",
    "qt.QDesktopWidget()": "Qt has no QDesktopWidget",
    "qt.QProcess.NoSuchMode": "QProcess has no NoSuchMode",
    "ctk.ctkMadeUp()": "ctk.ctkMadeUp is not in",
    "self.timer = qt.QTimer()\nself.timer.begin()": "QTimer has no begin",
    "timer = qt.QTimer()\ntimer.interval()": "interval is a property",
    "timer = qt.QTimer()\ntimer.remaining = 3": "QTimer has no remaining",
    "process = qt.QProcess()\nif process.state == 0: pass": "state is a method",
    "process = qt.QProcess()\nprocess.connect('finished(bool)', f)": "no signal finished(bool)",
    "ui.applyBotton.enabled = True": "no widget applyBotton",
    "getattr(ui, f'noSuch{n}').visible = True": "no widget for",
    "ui.applyButton.text()": "text is a property",
    "ui.applyButton.caption = 'x'": "QPushButton has no caption",
    "ui.applyButton.connect('clicked(int)', f)": "no signal clicked(int)",
    "button = ui.applyButton\nbutton.setEnable(True)": "QPushButton has no setEnable",
    "node = ui.selector.currentNode": "currentNode is a method",
    "ui.selector.currentNodeID()": "currentNodeID is a property",
    "ui.selector.connect('currentNodeChanged()', f)": "no signal currentNodeChanged()",
}


@pytest.mark.parametrize("code", PLANTED, ids=PLANTED.values())
def test_the_check_finds_a_planted_mistake(code):
    (complaint,) = Check(code, {"applyButton": "QPushButton", "selector": "qMRMLNodeComboBox"}).complaints
    assert PLANTED[code] in complaint


@pytest.mark.parametrize(
    "code",
    [
        "ui.applyButton.text = 'x'\nui.applyButton.enabled = ui.selector.currentNode() is not None",
        "timer = qt.QTimer()\ntimer.singleShot = True\ntimer.timeout.connect(f)\ntimer.start()",
        "ui.selector.connect('currentNodeChanged(vtkMRMLNode*)', f)\nui.selector.setCurrentNode(None)",
        "slicer.app.layoutManager().sliceWidget('Red').sliceView().scheduleRender()",
        "widget.whatever()\nself.other.thing = 3",
    ],
)
def test_the_check_accepts_what_is_right(code):
    widgets = {"applyButton": "QPushButton", "selector": "qMRMLNodeComboBox"}
    assert Check(code, widgets).complaints == []


def test_the_listed_classes_lead_to_classes_of_qt():
    for name in slicer_api.CLASSES:
        assert has(name, "objectName")
        assert "objectName" in properties(name)
