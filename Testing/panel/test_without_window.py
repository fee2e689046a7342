"""The logic in a Python without Qt and without an application, as PythonSlicer is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

MODULE = Path(__file__).parents[2] / "MissingModalitySynth"

SCRIPT = """
import sys
import numpy as np
import slicer, slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk
from MissingModalitySynth import MissingModalitySynthLogic
from MissingModalitySynthLib.errors import InputError

scene = slicer.vtkMRMLScene()
grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (40, 44, 36)), indexing="ij"))
voxels = np.where((grid**2).sum(0) < 0.6, 500 + 200 * np.sin(5 * grid[0]), 0).astype(np.float32)
image = vtk.vtkImageData()
image.SetDimensions(voxels.shape)
image.GetPointData().SetScalars(numpy_to_vtk(voxels.ravel(order="F"), deep=True))
source = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "T1")
source.SetAndObserveImageData(image)
source.SetSpacing(2, 2, 2)
logic = MissingModalitySynthLogic()
try:
    logic.synthesize({"T1": source}, ["T1"])
except InputError as error:
    print("refused:", error)
nodes = logic.synthesize({"T1": source}, ["T2", "FLAIR"], seed=1)
print([node.GetName() for node in nodes], nodes[0].GetScene() is scene)
print([name for name in ("qt", "PySide6", "torch") if name in sys.modules])
print(logic.session.client.info.pid)
"""

# What PythonSlicer has in place of Qt: a module without classes, which Slicer's own modules stumble over.
EMPTY_QT = {
    "qt.py": "",
    "stand_in/i18n.py": "tr = translate = str",
    "stand_in/parameterNodeWrapper.py": "import qt\nqt.QColor",
}


def test_the_module_can_be_imported_where_qt_is_an_empty_module(tmp_path):
    for name, text in EMPTY_QT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    code = (
        f"import slicer; slicer.__path__.append({str(tmp_path / 'stand_in')!r}); "
        "import MissingModalitySynth as module; print(module.MissingModalitySynthLogic().session.running)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(MODULE), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.strip() == "False", done.stderr


def test_a_script_synthesizes_with_the_same_call_and_no_process_is_left():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(MODULE), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    refused, made, foreign, worker = done.stdout.splitlines()[-4:]
    assert "T1 is both a source and a target" in refused
    assert made == "['T2 (synthetic from T1)', 'FLAIR (synthetic from T1)'] True"
    assert foreign == "[]"
    end = time.monotonic() + 20
    while psutil.pid_exists(int(worker)):
        assert time.monotonic() < end, "the worker outlives the script"
        time.sleep(0.05)
