"""What the check page says about installed packages, and what an installation does and leaves alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from MissingModalitySynthLib.scene import dependencies
from MissingModalitySynthLib.scene.dependencies import DependencyError, check, ensure
from MissingModalitySynthLib.worker.jobs import DeviceInfo, WorkerInfo

REQUIREMENTS = Path(__file__).parents[2] / "MissingModalitySynth" / "Resources" / "requirements.txt"
INFO = WorkerInfo("1", "3.12", 1, "2.9", (DeviceInfo("cpu", "CPU", 1 << 30, True),))


def install(site: Path, name: str, version: str, import_name: str | None = None) -> Path:
    """Write a package as pip does; returns its folder of metadata."""
    import_name = import_name or name
    package, dist_info = site / import_name, site / f"{name.replace('-', '_')}-{version}.dist-info"
    for folder in (package, package / "lib", dist_info):
        folder.mkdir(parents=True, exist_ok=True)
    files = [f"{import_name}/__init__.py", f"{import_name}/version.py", f"{import_name}/lib/_C.so"]
    for file in files:
        (site / file).write_text("")
    (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n")
    (dist_info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{dist_info.name}/METADATA"]))
    return dist_info


class FakeSlicer:
    """Slicer's installers, with the parameters that slicer/packaging.py and PyTorchUtils.py give them, over a folder
    that stands for site-packages."""

    def __init__(self, site: Path):
        self.site = site
        self.calls, self.constraints = [], ""
        self.fails = self.torch_fails = None
        self.torch_version = "2.9.1"

    @staticmethod
    def load_requirements(path):
        from packaging.requirements import Requirement

        lines = [line.strip() for line in Path(path).read_text().splitlines()]
        return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]

    def isPipInstallInProgress(self):
        return False

    def pip_ensure(
        self,
        requirements,
        constraints=None,
        skip_packages=None,
        prompt_install=True,
        prompt_restart=True,
        requester=None,
        skip_in_testing=True,
        show_progress=True,
    ):
        self.calls.append("pip_ensure")
        self.constraints = Path(constraints).read_text()
        if self.fails:
            raise self.fails
        for each in requirements:
            install(self.site, each.name, "99.0", {"scikit-image": "skimage"}.get(each.name))

    def installTorch(
        self,
        askConfirmation=False,
        forceComputationBackend=None,
        torchVersionRequirement=None,
        torchvisionVersionRequirement=None,
    ):
        self.calls.append(f"installTorch {torchVersionRequirement} {askConfirmation}")
        if self.torch_fails:
            raise self.torch_fails
        if self.torch_version is None:
            return None
        for old in list(self.site.glob("torch-*.dist-info"))[:1]:  # pip replaces what it finds
            remove(self.site, old.name.partition("-")[0])
        install(self.site, "torch", self.torch_version)
        return "torch"

    def ensure(self, **options):
        options = {"torch_logic": lambda: self, "path": [str(self.site)]} | options
        ensure(REQUIREMENTS, packaging=self, **options)


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder of packages in which nothing is lacking."""
    folder = tmp_path / "site-packages"
    install(folder, "torch", "2.9.0+cu126")
    install(folder, "numpy", "2.4.6")
    for each in FakeSlicer.load_requirements(REQUIREMENTS):
        install(folder, each.name, "99.0", {"scikit-image": "skimage"}.get(each.name))
    return folder


def remove(site: Path, name: str) -> None:
    for folder in dependencies.leftovers(name, [str(site)]):
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()


def row(site: Path, name: str) -> dependencies.Row:
    rows = check(REQUIREMENTS, torch_extension=True, info=INFO, path=[str(site)])
    return next(each for each in rows if each.name == name)


def test_when_everything_is_there_neither_pip_nor_pytorch_utils_is_touched(site):
    ensure(REQUIREMENTS, packaging=None, torch_logic=None, path=[str(site)])


def test_a_complete_installation_is_looked_at_once_per_process(monkeypatch):
    monkeypatch.setattr(dependencies, "_complete", set())
    ensure(REQUIREMENTS, packaging=None, torch_logic=None)
    monkeypatch.setattr(dependencies, "_lacking", None)
    ensure(REQUIREMENTS, packaging=None, torch_logic=None)


def test_the_check_page_has_a_line_for_the_extension_every_package_and_every_device(site):
    rows = check(REQUIREMENTS, torch_extension=True, info=INFO, path=[str(site)])
    packages = [each.name for each in FakeSlicer.load_requirements(REQUIREMENTS)]
    assert [each.name for each in rows] == ["PyTorch extension", "torch", *packages, "CPU (cpu)", "GPU"]
    assert {each.state for each in rows[:-1]} == {"present"}
    assert "2.9.0+cu126" in rows[1].sentence


def test_lines_that_ask_for_something_say_what_to_do(site):
    remove(site, "monai")
    install(site, "torch", "2.1.0")
    (site / "einops" / "__init__.py").unlink()
    devices = (DeviceInfo("cuda:0", "GPU", 1 << 30, False, "no kernel image."), DeviceInfo("cpu", "CPU", 1, True))
    info = WorkerInfo("1", "3.12", 1, "2.9", devices)
    for rows in (
        check(REQUIREMENTS, torch_extension=False, info=info, path=[str(site)]),
        check(REQUIREMENTS, torch_extension=True, info=None, path=[str(site)]),
    ):
        assert all(bool(each.remedy) == (each.state != "present") for each in rows)
        assert all(each.sentence.endswith(".") for each in rows)


def test_torch_is_installed_first_and_by_the_pytorch_extension_and_the_rest_by_pip_ensure(site):
    remove(site, "torch")
    remove(site, "monai")
    slicer = FakeSlicer(site)
    slicer.ensure()
    assert slicer.calls == ["installTorch >=2.8 True", "pip_ensure"]
    slicer.ensure()
    assert len(slicer.calls) == 2


def test_the_installed_versions_of_torch_and_of_slicers_own_packages_are_kept_by_constraints(site):
    remove(site, "monai")
    slicer = FakeSlicer(site)
    slicer.ensure()
    assert slicer.calls == ["pip_ensure"]
    assert slicer.constraints == "numpy==2.4.6\ntorch==2.9.0+cu126\n"


def test_a_torch_that_is_too_old_is_updated(site):
    remove(site, "torch")
    install(site, "torch", "2.1.0")
    assert row(site, "torch").state == "too old"
    slicer = FakeSlicer(site)
    slicer.ensure()
    assert slicer.calls == ["installTorch >=2.8 True"]
    assert row(site, "torch").state == "present"


def test_a_prerelease_of_torch_counts_as_installed(site):
    remove(site, "torch")
    install(site, "torch", "2.10.0.dev20260101+cpu")
    assert row(site, "torch").state == "present"


TEARS = {
    "no list of files": lambda site, dist_info: (dist_info / "RECORD").unlink(),
    "empty metadata": lambda site, dist_info: [file.unlink() for file in dist_info.iterdir()],
    "no version.py": lambda site, dist_info: (site / "torch" / "version.py").unlink(),
    "no library": lambda site, dist_info: (site / "torch" / "lib" / "_C.so").unlink(),
    "two versions": lambda site, dist_info: install(site, "torch", "2.8.0"),
    "no metadata": lambda site, dist_info: ([file.unlink() for file in dist_info.iterdir()], dist_info.rmdir()),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_installation_is_seen_and_mended_after_the_user_agreed_to_delete_it(site, tear):
    TEARS[tear](site, site / "torch-2.9.0+cu126.dist-info")
    assert row(site, "torch").state == "torn"
    assert str(site / "torch") in row(site, "torch").remedy

    slicer, questions = FakeSlicer(site), []
    with pytest.raises(DependencyError, match="torn"):
        slicer.ensure(confirm=questions.append)  # None is no consent
    assert (site / "torch").is_dir()
    assert slicer.calls == []

    slicer.ensure(confirm=lambda question: True)
    assert row(site, "torch").state == "present"
    assert str(site / "torch") in questions[0]
    assert [folder.name for folder in site.glob("torch-*")] == ["torch-2.9.1.dist-info"]


def test_only_folders_of_the_torn_package_are_deleted(site):
    install(site, "torchvision", "0.24", "torchvision")
    (site / "~orch").mkdir()
    (site / "~orch-2.8.0.dist-info").mkdir()
    found = {folder.name for folder in dependencies.leftovers("torch", [str(site)])}
    assert found == {"torch", "torch-2.9.0+cu126.dist-info", "~orch", "~orch-2.8.0.dist-info"}


def test_a_package_with_another_import_name_is_found_torn_too(site):
    (site / "skimage" / "__init__.py").unlink()
    assert row(site, "scikit-image").state == "torn"
    found = {folder.name for folder in dependencies.leftovers("scikit-image", [str(site)])}
    assert found == {"skimage", "scikit_image-99.0.dist-info"}


def failing(site, **attributes):
    slicer = FakeSlicer(site)
    for name, value in attributes.items():
        setattr(slicer, name, value)
    return slicer


@pytest.mark.parametrize(
    ("attributes", "options", "sentence"),
    [
        ({}, {"torch_logic": None}, "Extensions Manager"),
        ({}, {"testing": True}, "while Slicer is testing; lacking: torch, monai"),
        ({"isPipInstallInProgress": lambda: True}, {}, "wait"),
        ({"torch_version": None}, {}, "you declined"),
        ({"torch_version": "2.1.0"}, {}, "torch 2.1.0 is installed, but >=2.8 is needed"),
        ({"torch_fails": subprocess.CalledProcessError(1, "ltt")}, {}, "pip ended with code 1.*network"),
        ({"torch_fails": TypeError("unexpected keyword")}, {}, "unexpected keyword.*PyTorch Utils"),
        ({"torch_fails": OSError("[WinError 206] The filename is too long")}, {}, "WinError 206.*short folder"),
        ({"fails": subprocess.CalledProcessError(2, "pip")}, {}, "pip ended with code 2.*network"),
        ({"fails": RuntimeError("User declined package installation")}, {}, "User declined"),
    ],
)
def test_what_cannot_be_installed_ends_in_one_sentence(site, attributes, options, sentence):
    remove(site, "torch")
    remove(site, "monai")
    with pytest.raises(DependencyError, match=sentence) as raised:
        failing(site, **attributes).ensure(**options)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith(".")


def test_a_folder_in_use_is_named_when_it_cannot_be_deleted(site, monkeypatch):
    (site / "torch" / "version.py").unlink()

    def in_use(folder):
        raise PermissionError(13, "in use", str(Path(folder) / "lib" / "_C.so"))

    monkeypatch.setattr(dependencies.shutil, "rmtree", in_use)
    with pytest.raises(DependencyError, match=r"_C\.so cannot be deleted.*Close Slicer"):
        FakeSlicer(site).ensure(confirm=lambda question: True)


def test_a_gpu_without_a_kernel_is_told_apart_from_one_that_works(site):
    devices = (
        DeviceInfo("cuda:0", "Old GPU", 4 << 30, False, "no kernel image is available."),
        DeviceInfo("cuda:1", "New GPU", 4 << 30, True),
        DeviceInfo("cpu", "CPU", 8 << 30, True),
    )
    rows = check(REQUIREMENTS, torch_extension=True, info=WorkerInfo("1", "3.12", 1, "2.9", devices), path=[str(site)])
    assert [(each.name, each.state) for each in rows[-3:]] == [
        ("Old GPU (cuda:0)", "not working"),
        ("New GPU (cuda:1)", "present"),
        ("CPU (cpu)", "present"),
    ]
    assert "no kernel image" in rows[-3].sentence
    assert "driver" in rows[-3].remedy


def test_before_the_worker_has_started_the_devices_are_not_known(site):
    assert check(REQUIREMENTS, torch_extension=True, info=None, path=[str(site)])[-1].state == "not known"


def test_judging_torch_does_not_import_it():
    code = (
        "import sys; from pathlib import Path; from MissingModalitySynthLib.scene.dependencies import check;"
        f"rows = check(Path({str(REQUIREMENTS)!r}), torch_extension=True, info=None);"
        "print(rows[1].state, sorted({'torch', 'monai', 'skimage'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["present", "[]"]
