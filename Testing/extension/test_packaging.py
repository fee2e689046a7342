"""What the CMake files list is what is in the tree, and what they install runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "MissingModalitySynth"
STAND_IN = Path(__file__).parent / "slicer"
INSTALLED = "lib/Slicer-5.12/qt-scripted-modules"
LISTS = {
    MODULE: ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"),
    ROOT: ("TRAINING_SCRIPTS", "TRAINING_RESOURCES", "DATA"),
}


def listed(folder: Path) -> list[str]:
    text = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
    lists = (re.search(rf"set\({name}\n(.*?)\)", text, re.DOTALL)[1].split() for name in LISTS[folder])
    return [file.replace("${MODULE_NAME}", "MissingModalitySynth") for files in lists for file in files]


def in_the_tree(folder: Path, *parts: str) -> set[str]:
    files = (file for part in parts for file in (folder / part).rglob("*"))
    names = {file.relative_to(folder).as_posix() for file in files if file.is_file()}
    return {name for name in names if "__pycache__" not in name and "/." not in name}


def test_the_modules_list_has_every_script_and_resource_and_nothing_else():
    tree = in_the_tree(MODULE, "MissingModalitySynthLib", "Resources") | {"MissingModalitySynth.py"}
    assert sorted(listed(MODULE)) == sorted(tree)


def test_the_list_of_training_weights_and_sample_data_has_every_file_and_nothing_else():
    tree = in_the_tree(ROOT, "training", "Resources/Models", "Resources/SampleData") | {"LICENSE"}
    assert sorted(listed(ROOT)) == sorted(tree)


def test_scripts_are_listed_as_scripts_and_the_rest_as_resources():
    for folder, (scripts, *resources) in LISTS.items():
        text = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
        for name in (scripts, *resources):
            files = re.search(rf"set\({name}\n(.*?)\)", text, re.DOTALL)[1].split()
            assert {file.endswith(".py") for file in files} == {name == scripts}


def test_pip_and_cmake_package_the_same_folders_of_code():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.findall(r'"(.+)"', re.search(r"^packages = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1])
    scripts = listed(MODULE) + listed(ROOT)
    folders = {file.rpartition("/")[0].replace("/", ".") for file in scripts if file.endswith("/__init__.py")}
    assert set(packages) - {"MissingModalitySynthLib.Models"} == folders


@pytest.fixture(scope="module")
def installation(tmp_path_factory) -> Path:
    """The folder of scripted modules that the CMake files install, made with a stand-in for Slicer's macros."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("needs cmake: pip install cmake")
    build, prefix = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("installation")
    no_compiler = ["-DCMAKE_C_COMPILER_FORCED=1", "-DCMAKE_CXX_COMPILER_FORCED=1"]
    for language in ("C", "CXX"):
        no_compiler += [f"-DCMAKE_{language}_COMPILER={sys.executable}", f"-DCMAKE_{language}_COMPILER_ID_RUN=1"]
    for command in (
        ["-S", ROOT, "-B", build, f"-DSlicer_DIR={STAND_IN}", "-DBUILD_TESTING=ON", *no_compiler],
        ["--install", build, "--prefix", prefix],
    ):
        done = subprocess.run([cmake, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(build / "description.txt", prefix)
    return prefix / INSTALLED


def python(installation: Path, *arguments: str, models: Path | None = None) -> subprocess.CompletedProcess:
    """A Python process that finds the installed extension as PythonSlicer does, through PYTHONPATH."""
    variables = {"PYTHONPATH": str(installation), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if models:
        variables["MISSING_MODALITY_SYNTH_MODELS"] = str(models)
    command = [sys.executable, *arguments]
    environment = os.environ | variables
    done = subprocess.run(
        command, cwd=installation.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_folder_of_scripted_modules_holds_one_module_only(installation):
    assert [file.name for file in installation.glob("*.py")] == ["MissingModalitySynth.py"]


def test_every_listed_file_is_installed_unchanged(installation):
    for folder in LISTS:
        for name in listed(folder):
            assert (installation / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_description_of_the_extension_is_complete(installation):
    lines = (installation.parents[2] / "description.txt").read_text(encoding="utf-8").splitlines()
    described = dict(line.partition(" ")[::2] for line in lines)
    assert all(described.values())
    assert (described["NAME"], described["CATEGORY"]) == ("MissingModalitySynth", "Image Synthesis")
    for key in ("LICENSE_FILE", "README_FILE"):
        assert Path(described[key]).is_file()


def test_every_test_for_slicer_is_registered(installation):
    description = (installation.parents[2] / "description.txt").read_text(encoding="utf-8")
    registered = re.search("UNITTESTS (.*)", description)[1].split(";")
    assert set(registered) == {file.name for file in (ROOT / "Testing" / "Python").glob("*Test.py")}


def test_the_installed_command_line_finds_the_bundled_weights_and_they_are_whole(installation, tmp_path):
    command = ("-m", "MissingModalitySynthLib", "models")
    listing = json.loads(python(installation, *command, "list", "--json", models=tmp_path).stdout)
    bundled = {each["name"]: each["path"] for each in listing["packages"] if each["bundled"]}
    models = installation / "Resources" / "Models"
    assert bundled == {folder.name: str(folder) for folder in models.iterdir()}
    for name in bundled:
        python(installation, *command, "verify", name, models=tmp_path)


def test_the_installed_command_line_inspects_the_installed_sample(installation, tmp_path):
    sample = installation / "Resources" / "SampleData" / "MissingModalitySynth-simulated-T1.nrrd"
    done = python(installation, "-m", "MissingModalitySynthLib", "inspect", str(sample), models=tmp_path)
    assert "T1" in done.stdout
    assert "160 x 192 x 160" in done.stdout.replace("x", " x ").replace("  ", " ")


def test_training_runs_from_the_installation_with_its_own_configurations_and_licence(installation):
    assert "export" in python(installation, "-m", "training", "--help").stdout
    code = "import training; print(training.__file__)"
    folder = Path(python(installation, "-c", code).stdout.strip()).parent
    assert folder == installation / "training"
    assert (folder / "configs" / "smoke.yaml").is_file()
    assert (folder.parent / "LICENSE").is_file()  # which `export` puts into every package


def test_the_installation_finds_its_own_sample_data(installation):
    code = "from MissingModalitySynthLib.scene.sample_data import sample_folder; print(sample_folder())"
    assert Path(python(installation, "-c", code).stdout.strip()) == installation / "Resources" / "SampleData"


SCRIPT = """
import sys
import numpy as np
import slicer
from MissingModalitySynth import MissingModalitySynthLogic

slicer.mrmlScene = slicer.vtkMRMLScene()
k, j, i = np.meshgrid(*[np.linspace(-1, 1, 32)] * 3, indexing="ij")
radius = np.sqrt(i**2 + j**2 + k**2)
voxels = np.where(radius < 0.9, 500 + 200 * np.sin(5 * i), 0).astype(np.float32)
node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "T1")
slicer.util.updateVolumeFromArray(node, voxels)
(made,) = MissingModalitySynthLogic().synthesize({"T1": node}, ["FLAIR"], device="cpu")
print(made.GetName(), slicer.util.arrayFromVolume(made).max() > 0, "torch" in sys.modules)
MissingModalitySynthLogic.shutdownWorker()
"""


def test_a_script_synthesizes_with_the_installed_module_and_its_worker_without_a_window(installation, tmp_path):
    pytest.importorskip("slicer")
    done = python(installation, "-c", SCRIPT, models=tmp_path)
    assert done.stdout.splitlines()[-1] == "FLAIR (synthetic from T1) True False"
