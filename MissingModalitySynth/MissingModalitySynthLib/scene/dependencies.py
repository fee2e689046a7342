"""Python packages that the worker needs: what is installed, what is wrong with it, and how it gets installed.

Nothing here imports what it judges, least of all torch. Packages are installed on first use only, and only through
Slicer: torch by the PyTorch extension, the rest by ``slicer.packaging.pip_ensure``. Both are handed in by the caller.
"""

from __future__ import annotations

import csv
import importlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import Requirement

from ..errors import InputError
from ..worker.jobs import WorkerInfo
from .translation import _

REQUESTER = "MissingModalitySynth"
TORCH = Requirement("torch>=2.8")

# What an installation must leave as it is: torch is the PyTorch extension's, the others come with Slicer.
_KEPT = ("torch", "numpy", "scipy", "SimpleITK", "pillow", "requests", "pydicom")
_IMPORT_NAMES = {"scikit-image": "skimage"}
_CODE = {".py", ".so", ".pyd", ".dll", ".dylib"}

PRESENT, MISSING, TOO_OLD, TORN = "present", "missing", "too old", "torn"
NOT_WORKING, NOT_KNOWN = "not working", "not known"

_complete: set[Path] = set()  # what `ensure` found complete in this process: looking takes a tenth of a second


class DependencyError(InputError):
    """A package that is needed is not there: its installation was declined, is impossible or failed."""


@dataclass(frozen=True)
class Row:
    """A line of the check page.

    Attributes:
        name: package or device.
        state: "present", "missing", "too old", "torn", "not working" or "not known".
        sentence: what was found.
        remedy: what to do; empty if there is nothing to do.
    """

    name: str
    state: str
    sentence: str
    remedy: str = ""


def check(
    requirements: Path, *, torch_extension: bool, info: WorkerInfo | None, path: Sequence[str] | None = None
) -> tuple[Row, ...]:
    """The check page: the PyTorch extension, torch and the other packages, then the devices.

    Args:
        requirements: requirements.txt of the module.
        torch_extension: whether Slicer has the module PyTorchUtils.
        info: what the worker said; None if it was never started.
        path: folders to look for packages in; ``sys.path`` if None.
    """
    if torch_extension:
        first = Row(_("PyTorch extension"), PRESENT, _("The PyTorch extension is installed."))
    else:
        first = Row(_("PyTorch extension"), MISSING, _("The PyTorch extension is not installed."), _install_extension())
    rows = [_inspect(each, path) for each in _needed(requirements)]
    return (first, *rows, *_device_rows(info))


def ensure(
    requirements: Path,
    *,
    packaging: Any,
    torch_logic: Callable[[], Any] | None,
    confirm: Callable[[str], bool] | None = None,
    testing: bool = False,
    path: Sequence[str] | None = None,
) -> None:
    """Install what is missing. If nothing is, nothing is started or asked for, neither pip nor the network.

    Args:
        requirements: requirements.txt of the module.
        packaging: the module ``slicer.packaging``.
        torch_logic: the class ``PyTorchUtils.PyTorchUtilsLogic``; None if the PyTorch extension is not installed.
        confirm: asks the user a question; torn installations are deleted only if it says True, and never if None.
        testing: Slicer runs tests, which must not change its Python: nothing is installed.
        path: folders to look for packages in; ``sys.path`` if None.

    Raises:
        DependencyError: declined, impossible or failed; the sentence says which, and what to do.
    """
    if path is None and requirements in _complete:
        return
    lacking = _lacking(requirements, path)
    if not lacking:
        if path is None:
            _complete.add(requirements)
        return
    names = ", ".join(row.name for row in lacking)
    if testing:
        raise DependencyError(_("Nothing is installed while Slicer is testing; lacking: {names}.").format(names=names))
    if packaging.isPipInstallInProgress():
        raise DependencyError(_("Other packages are being installed at the moment; wait until that is done."))
    if any(row.name == TORCH.name for row in lacking) and torch_logic is None:
        raise DependencyError(_("PyTorch is lacking. {remedy}").format(remedy=_install_extension()))
    for row in lacking:
        if row.state == TORN:
            _delete(row, confirm, path)
    if any(row.name == TORCH.name for row in lacking):  # first, as MONAI would otherwise bring a torch of its own
        _install_torch(torch_logic)
    if any(row.name != TORCH.name for row in lacking):
        _install_rest(requirements, packaging, path)
    importlib.invalidate_caches()
    if still := _lacking(requirements, path):
        raise DependencyError(f"{still[0].sentence} {still[0].remedy}")


def leftovers(name: str, path: Sequence[str] | None = None) -> tuple[Path, ...]:
    """Folders of a package and of its metadata, with those that pip had set aside, in the place where it is found."""
    found = list(metadata.distributions(name=name, **_at(path)))
    spec = PathFinder.find_spec(_import_name(name), path)
    if found:
        folder = Path(found[0].locate_file(""))
    elif spec and spec.origin:
        folder = Path(spec.origin).parents[1]
    else:
        return ()
    import_name = _import_name(name)
    aside = "~" + import_name[1:]  # pip renames "torch" to "~orch" while it replaces it
    distribution = name.lower().replace("-", "_")
    return tuple(
        each
        for each in sorted(folder.iterdir())
        if each.is_dir()
        and (
            each.name in (import_name, aside)
            or (each.suffix == ".dist-info" and each.name.lower().startswith((f"{distribution}-", f"{aside}-")))
        )
    )


def _at(path: Sequence[str] | None) -> dict[str, Any]:
    return {} if path is None else {"path": list(path)}


def _import_name(name: str) -> str:
    return _IMPORT_NAMES.get(name, name.replace("-", "_"))


def _needed(requirements: Path) -> list[Requirement]:
    lines = (line.strip() for line in requirements.read_text(encoding="utf-8").splitlines())
    return [TORCH, *(Requirement(line) for line in lines if line and not line.startswith("#"))]


def _lacking(requirements: Path, path: Sequence[str] | None) -> list[Row]:
    return [row for each in _needed(requirements) if (row := _inspect(each, path)).state != PRESENT]


def _inspect(requirement: Requirement, path: Sequence[str] | None) -> Row:
    """What is there of a package, judged by its metadata and by whether its files exist."""
    name = requirement.name
    found = list(metadata.distributions(name=name, **_at(path)))
    if not found:
        spec = PathFinder.find_spec(_import_name(name), path)
        if spec and spec.origin:  # a folder without __init__.py would do no harm
            return _torn(name, _("its files are there, but not its metadata"), path)
        sentence = _("{name} is not installed.").format(name=name)
        return Row(name, MISSING, sentence, _("It is installed when you press Synthesize."))
    folder = found[0].locate_file("")
    versions = {
        each.version if each.read_text("METADATA") else None for each in found if each.locate_file("") == folder
    }
    if None in versions:
        return _torn(name, _("its metadata is empty"), path)
    if len(versions) > 1:
        return _torn(name, _("it has the metadata of several versions"), path)
    if problem := _missing_file(found[0]):
        return _torn(name, problem, path)
    version = versions.pop()
    if not requirement.specifier.contains(version, prereleases=True):
        sentence = _("{name} {version} is installed, but {specifier} is needed.")
        sentence = sentence.format(name=name, version=version, specifier=requirement.specifier)
        return Row(name, TOO_OLD, sentence, _("It is updated when you press Synthesize."))
    return Row(name, PRESENT, _("{name} {version} is installed.").format(name=name, version=version))


def _missing_file(distribution: metadata.Distribution) -> str:
    """What is wrong with the files of a package, "" if nothing is. Deep folders are left out, as torch's are many."""
    record = distribution.read_text("RECORD")  # ``distribution.files`` leaves out what does not exist
    if not record:
        return _("the list of its files is missing")
    files = (PurePosixPath(row[0]) for row in csv.reader(record.splitlines()) if row and row[0].count("/") <= 2)
    code = (file for file in files if file.suffix in _CODE and not file.is_absolute() and ".." not in file.parts)
    missing = next((file for file in code if not Path(distribution.locate_file(file)).exists()), None)
    return "" if missing is None else _("{file} is missing").format(file=missing)


def _torn(name: str, problem: str, path: Sequence[str] | None) -> Row:
    folders = ", ".join(str(each) for each in leftovers(name, path))
    return Row(
        name,
        TORN,
        _("The installation of {name} is torn: {problem}.").format(name=name, problem=problem),
        _("Close Slicer, delete {folders}, start Slicer and press Synthesize.").format(folders=folders),
    )


def _install_extension() -> str:
    return _("Install the extension PyTorch in the Extensions Manager, restart Slicer and press Synthesize.")


def _delete(row: Row, confirm: Callable[[str], bool] | None, path: Sequence[str] | None) -> None:
    folders = leftovers(row.name, path)
    question = _("{sentence} Installing again helps only after these folders are deleted:\n{folders}\nDelete them now?")
    question = question.format(sentence=row.sentence, folders="\n".join(str(each) for each in folders))
    if confirm is None or not confirm(question):
        raise DependencyError(f"{row.sentence} {row.remedy}")
    try:
        for folder in folders:
            shutil.rmtree(folder)
    except OSError as error:
        raise DependencyError(
            _("{file} cannot be deleted, probably because it is in use. {remedy}").format(
                file=error.filename, remedy=row.remedy
            )
        ) from error


def _install_torch(torch_logic: Callable[[], Any]) -> None:
    try:
        torch = torch_logic().installTorch(askConfirmation=True, torchVersionRequirement=str(TORCH.specifier))
    except (subprocess.CalledProcessError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise DependencyError(
            _(
                "PyTorch could not be installed ({reason}). Check the network connection, restart Slicer and try "
                "again, or install it in the module PyTorch Utils; if the path is too long for Windows, install Slicer "
                "in a short folder such as C:\\Slicer."
            ).format(reason=_reason(error))
        ) from error
    if torch is None:
        raise DependencyError(_("PyTorch was not installed, as you declined; press Synthesize to be asked again."))


def _install_rest(requirements: Path, packaging: Any, path: Sequence[str] | None) -> None:
    kept = [each for name in _KEPT for each in metadata.distributions(name=name, **_at(path))]
    with tempfile.TemporaryDirectory(prefix="MissingModalitySynth-") as folder:
        constraints = Path(folder) / "constraints.txt"
        lines = {f"{each.metadata['Name']}=={each.version}\n" for each in kept if each.read_text("METADATA")}
        constraints.write_text("".join(sorted(lines)), encoding="utf-8")
        try:
            packaging.pip_ensure(
                packaging.load_requirements(requirements), constraints=constraints, requester=REQUESTER
            )
        except subprocess.CalledProcessError as error:
            raise DependencyError(
                _(
                    "Python packages could not be installed ({reason}). Check the network connection, restart Slicer "
                    "and try again; the log says more."
                ).format(reason=_reason(error))
            ) from error
        except RuntimeError as error:  # how pip_ensure says that the user declined
            raise DependencyError(
                _("Nothing was installed ({reason}); press Synthesize to be asked again.").format(reason=_reason(error))
            ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):  # its own text repeats the command line
        return _("pip ended with code {code}").format(code=error.returncode)
    return " ".join(str(error).split()) or type(error).__name__


def _device_rows(info: WorkerInfo | None) -> list[Row]:
    if info is None or not info.devices:
        sentence = _("Which devices work is asked when the worker has started.")
        return [Row(_("Devices"), NOT_KNOWN, sentence, _("Select a volume, wait a few seconds and check again."))]
    rows = []
    for device in info.devices:
        name = f"{device.label} ({device.name})"
        if device.works:
            rows.append(Row(name, PRESENT, _("A test computation ran on {name}.").format(name=name)))
        else:
            remedy = _(
                "Update the graphics driver; if that does not help, uninstall and install PyTorch in the module "
                "PyTorch Utils. Until then choose the CPU."
            )
            sentence = _("{name} does not compute: {reason}").format(name=name, reason=device.reason)
            rows.append(Row(name, NOT_WORKING, sentence, remedy))
    if all(device.name == "cpu" for device in info.devices):
        remedy = _(
            "If this computer has an NVIDIA GPU: update its driver, then uninstall and install PyTorch in the module "
            "PyTorch Utils."
        )
        rows.append(Row(_("GPU"), MISSING, _("PyTorch finds no GPU; the CPU does the work."), remedy))
    return rows
