"""What the user chose, what is chosen for them at first, and what may be chosen at all: plain data over the scene.

Nothing here needs Qt, SimpleITK or torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelPackageError, SynthesisError
from ..modality import MODALITIES, OTHER
from ..model_package import ListedPackage, ModelPackage, list_packages, load_package
from .provenance import is_synthetic, restore_provenance
from .session import Task
from .translation import _
from .volumes import check_scalar, guess_of

ROWS = 4  # with all five contrasts in the vocabulary, at most four can be given for a fifth
UNKNOWN = "?"
OTHER_CHOICE = "Other"  # chosen where the contrast is not known or not listed; UNKNOWN: nothing is chosen yet
MODALITY_CHOICES = (UNKNOWN, *MODALITIES, OTHER_CHOICE)
ALL_PLANES = "All planes"
PLANE_CHOICES = ("Axial", "Sagittal", "Coronal", ALL_PLANES)

DicomTags = Callable[[Any], Mapping[str, str]]


@dataclass(frozen=True)
class Choices:
    """What the user chose, as it is in the parameter node.

    Attributes:
        sources: volume nodes with their modality, ``OTHER`` or ``UNKNOWN``.
        targets: ticked modalities, also those that cannot be made now.
        package, method, device, reference: keys of the options; "" for the default.
        steps: 0 for the method's default.
        spacing: in mm, 0 for the reference's grid.
        replace: whether earlier results give way.
    """

    sources: tuple[tuple[Any, str], ...] = ()
    targets: tuple[str, ...] = ()
    package: str = ""
    method: str = ""
    device: str = "auto"
    reference: str = ""
    steps: int = 0
    samples: int = 1
    seed: int = 0
    spacing: float = 0.0
    replace: bool = True


def choices_of(parameters: Any) -> Choices:
    """The choices in the parameter node's wrapper; volumes that are no longer in the scene are left out."""
    rows = _rows(parameters)
    options = ("package", "method", "device", "reference", "steps", "samples", "seed", "spacing", "replace")
    return Choices(
        sources=tuple((node, modality) for node, modality in rows if node is not None and node.GetScene() is not None),
        targets=tuple(name for name in MODALITIES if getattr(parameters, f"target{name}")),
        **{name: getattr(parameters, name) for name in options},
    )


def _rows(parameters: Any) -> list[tuple[Any, str]]:
    """Nodes (or None) with their modalities, as they are in the panel."""
    rows = [(getattr(parameters, f"source{n}"), getattr(parameters, f"modality{n}")) for n in range(1, ROWS + 1)]
    return [(node, OTHER if modality == OTHER_CHOICE else modality) for node, modality in rows]


def store_sources(parameters: Any, sources: Sequence[tuple[Any, str]]) -> None:
    """Write source volumes with their modalities into the first rows, and empty the others."""
    for n in range(ROWS):
        node, modality = sources[n] if n < len(sources) else (None, UNKNOWN)
        if getattr(parameters, f"source{n + 1}") is not node:
            setattr(parameters, f"source{n + 1}", node)
        chosen = OTHER_CHOICE if modality == OTHER else modality
        if getattr(parameters, f"modality{n + 1}") != chosen:
            setattr(parameters, f"modality{n + 1}", chosen)


def available_packages() -> tuple[ListedPackage, ...]:
    """Bundled and installed packages; none where their folders cannot be read."""
    try:
        return tuple(list_packages())
    except ModelPackageError:
        return ()


def chosen_package(choices: Choices, packages: Sequence[ListedPackage]) -> ListedPackage | None:
    """The package that was chosen, else the first that can be used, else the first."""
    by_name = {each.name: each for each in packages}
    usable = next((each for each in packages if each.package is not None), None)
    return by_name.get(choices.package) or usable or next(iter(packages), None)


def offered_methods(choices: Choices, package: Any) -> tuple[str, ...]:
    """The package's methods that know the contrasts of the sources, as far as these are known themselves.

    Where none does, all of them, as a source may yet be taken out; but a paired one never beside ``OTHER``. Of several,
    only those that can make something that is not given.
    """
    if package is None:
        return ()
    given = [modality for _node, modality in choices.sources if modality != UNKNOWN]
    methods = package.methods_from(given) or (() if OTHER in given else package.methods)
    useful = tuple(method for method in methods if not set(package.targets_of(method)) <= set(given))
    return useful or methods


def chosen_method(choices: Choices, package: Any) -> str:
    """The method that was chosen, else the package's default, else another that is offered; "" if there is none."""
    offered = offered_methods(choices, package)
    wanted = (choices.method, *([package.default_method] if package else []), *offered)
    return next((method for method in wanted if method in offered), "")


def package_named(package: str | Path | None) -> ModelPackage:
    """The package of that name or in that folder; the first one that can be used if None.

    Raises:
        ModelPackageError: there is none, or it is damaged.
    """
    if package is not None:
        return load_package(package)
    found = chosen_package(Choices(), available_packages())
    if found is None or found.package is None:
        raise ModelPackageError(found.problem if found else _("There is no model: install a model package first."))
    return found.package


def acquired_volumes(scene: Any) -> list[Any]:
    """Visible scalar volumes of the scene that are no label maps, vector volumes or synthetic."""
    kind = "vtkMRMLScalarVolumeNode"
    nodes = [scene.GetNthNodeByClass(index, kind) for index in range(scene.GetNumberOfNodesByClass(kind))]
    return [
        node
        for node in nodes
        if node.GetClassName() == kind and not node.GetHideFromEditors() and not is_synthetic(node) and _usable(node)
    ]


def recognise_synthetic(scene: Any) -> None:
    """Mark the volumes again that were loaded from files of synthetic volumes, see ``restore_provenance``.

    Raises:
        InputError: the provenance in a file is damaged.
    """
    for node in acquired_volumes(scene):
        restore_provenance(node)


def default_sources(scene: Any, dicom_tags: DicomTags | None = None) -> list[tuple[Any, str]]:
    """The volume that a run most likely starts from, with its modality: none or one.

    A volume whose contrast is recognised comes first, then the active one (shown in the slice views), then the first.
    """
    selection = scene.GetNodeByID("vtkMRMLSelectionNodeSingleton")
    active = selection.GetActiveVolumeID() if selection is not None else None
    found = [(node, guess_of(node, dicom_tags) or UNKNOWN) for node in acquired_volumes(scene)]
    found.sort(key=lambda row: (row[1] == UNKNOWN, row[0].GetID() != active))
    return found[:1]


def settled_sources(
    rows: Sequence[tuple[Any, str]],
    known: Mapping[str, str],
    dicom_tags: DicomTags | None = None,
) -> list[tuple[Any, str]]:
    """Rows without gaps and repetitions; a volume that was not there before gets the modality that is guessed for it.

    Args:
        rows: nodes (or None) with the modalities in the panel.
        known: modality by node ID of the rows as they were before.
        dicom_tags: see ``volumes.guess_of``.
    """
    settled: dict[str, tuple[Any, str]] = {}
    for node, modality in rows:
        if node is None or node.GetScene() is None or node.GetID() in settled:
            continue
        is_new = node.GetID() not in known and (known or modality == UNKNOWN)
        settled[node.GetID()] = (node, (guess_of(node, dicom_tags) or UNKNOWN) if is_new else modality)
    return list(settled.values())


def settle(parameters: Any, known: Mapping[str, str], dicom_tags: DicomTags | None = None) -> dict[str, str]:
    """Bring the source rows of the parameter node in order, see :func:`settled_sources`.

    Returns:
        Modality by node ID, for the next time.
    """
    settled = settled_sources(_rows(parameters), known, dicom_tags)
    store_sources(parameters, settled)
    return {node.GetID(): modality for node, modality in settled}


def offer_default(scene: Any, parameters: Any, dicom_tags: DicomTags | None = None) -> None:
    """Choose the volume that a run most likely starts from, unless the user has chosen one."""
    if not choices_of(parameters).sources and (found := default_sources(scene, dicom_tags)):
        store_sources(parameters, found)


def task_of(choices: Choices, packages: Sequence[ListedPackage]) -> Task:
    """What Synthesize starts; only where ``panel.View.can_start`` holds."""
    package = chosen_package(choices, packages).package
    method = chosen_method(choices, package)
    sources = {modality: node for node, modality in choices.sources}
    return Task(
        sources=sources,
        targets=tuple(name for name in choices.targets if name in package.targets_of(method) and name not in sources),
        package=package,
        method=method,
        device=choices.device,
        steps=choices.steps or None,
        samples=choices.samples,
        seed=choices.seed,
        reference=choices.reference if choices.reference in sources else None,
        spacing=(choices.spacing,) * 3 if choices.spacing else None,
        replace=choices.replace,
    )


def _usable(node: Any) -> bool:
    try:
        check_scalar(node)
    except SynthesisError:
        return False
    return True
