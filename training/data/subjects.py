"""What a subject is, and the checks that name a broken one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.modality import MODALITIES
from MissingModalitySynthLib.volume import Geometry
from MissingModalitySynthLib.volume_io import read_header, read_volume

POLICIES = ("skip", "stop")
# Relative beyond 1 mm. Headers written by different tools differ in the fourth digit; that moves nothing.
_GRID_TOLERANCE = 1e-3
_PATIENT = re.compile(r"(IXI\d+)-.+|(BraTS-[A-Z-]+-\d+)-\d+|(sub-[^_]+)_ses-.+", re.IGNORECASE)


def patient_of(name: str) -> str:
    """The patient that a subject's name tells: "BraTS-GLI-00008-001" and "-000" are two time points of one person.

    Known are BraTS since 2023, IXI ("IXI002-Guys-0828") and BIDS ("sub-01_ses-2"); any other name is its own patient.
    """
    match = _PATIENT.fullmatch(name)
    return next(filter(None, match.groups())) if match else name


@dataclass(frozen=True)
class Subject:
    """One examination of one person.

    Attributes:
        name: unique in its data set.
        files: volumes by contrast, in the order of ``MODALITIES``; NIfTI, NRRD, MHA or a DICOM series folder.
        segmentation: label map (0 is background) on the grid of the reference.
        patient: all examinations of one person share it; :func:`patient_of` the name where left out.

    Raises:
        InputError: a contrast is none of ``MODALITIES``.
    """

    name: str
    files: Mapping[str, Path]
    segmentation: Path | None = None
    patient: str = field(default="")

    def __post_init__(self):
        if unknown := self.files.keys() - set(MODALITIES):
            raise InputError(f"Subject '{self.name}' has contrasts that are not known: {', '.join(sorted(unknown))}.")
        object.__setattr__(self, "files", {name: self.files[name] for name in MODALITIES if name in self.files})
        object.__setattr__(self, "patient", self.patient or patient_of(self.name))

    @property
    def reference(self) -> str:
        """The contrast whose grid the others are brought to: the first of ``MODALITIES`` that there is."""
        return next(iter(self.files))


def same_grid(one: Geometry, other: Geometry) -> bool:
    """Whether voxels of two volumes lie at the same places."""
    return one.matches(other, tol=_GRID_TOLERANCE)


def check_subjects(
    subjects: Sequence[Subject],
    *,
    required: Sequence[str] = (),
    fewest: int = 2,
    register: bool = False,
    voxels: bool = False,
) -> dict[str, str]:
    """What is wrong with which subject.

    Found are missing, empty, truncated and otherwise unreadable files, a contrast of ``required`` that is not there,
    fewer than ``fewest`` contrasts, and volumes of one subject on different grids.

    Args:
        required: contrasts that every subject must have.
        register: contrasts on other grids than the reference's are fine, since they will be registered; the
            segmentation must still be on the reference's grid.
        voxels: read the voxels too and refuse constant volumes; takes some ten times as long.

    Returns:
        By name of the broken subject, in the order given, one sentence. Empty when all is well.
    """
    problems = {}
    for subject in subjects:
        if problem := _problem(subject, required, fewest, register, voxels):
            problems[subject.name] = f"Subject '{subject.name}' {problem}"
    return problems


def usable_subjects(
    subjects: Sequence[Subject], *, policy: str = "stop", report: Callable[[str], None] = print, **checks
) -> list[Subject]:
    """The subjects that pass :func:`check_subjects`.

    Args:
        policy: "stop" raises at the first broken subject, "skip" reports each one and goes on with the others.
        **checks: of :func:`check_subjects`.

    Raises:
        InputError: a subject is broken and the policy is "stop", or none is left.
    """
    check_policy(policy)
    problems = check_subjects(subjects, **checks)
    if problems and policy == "stop":
        others = f" {len(problems) - 1} further subjects are broken as well." if len(problems) > 1 else ""
        raise InputError(next(iter(problems.values())) + others)
    for problem in problems.values():
        report(f"Skipped: {problem}")
    if len(problems) == len(subjects):
        raise InputError(
            f"None of the {len(subjects)} subjects can be used. {next(iter(problems.values()), '')}".strip()
        )
    if problems:
        report(f"Skipped {len(problems)} of {len(subjects)} subjects.")
    return [subject for subject in subjects if subject.name not in problems]


def check_policy(policy: str) -> None:
    """Refuse a policy for broken subjects that is not one of ``POLICIES``."""
    if policy not in POLICIES:
        raise InputError(f"'{policy}' is no policy for broken subjects: use one of {', '.join(POLICIES)}.")


def _problem(subject: Subject, required: Sequence[str], fewest: int, register: bool, voxels: bool) -> str | None:
    if missing := [name for name in required if name not in subject.files]:
        return f"has no {' and no '.join(missing)}."
    if len(subject.files) < fewest:
        needed = "two contrasts or more" if fewest > 1 else "one of the targets"
        return f"has only {' '.join(subject.files) or 'no contrast at all'}: training needs {needed}."
    try:
        grids = {
            name: read_volume(path).geometry if voxels else read_header(path)[0] for name, path in subject.files.items()
        }
        if subject.segmentation:
            grids["segmentation"] = read_header(subject.segmentation)[0]
    except InputError as error:
        return f"can't be read: {error}"
    reference = grids[subject.reference]
    for name, grid in grids.items():
        if not same_grid(grid, reference) and (name == "segmentation" or not register):
            advice = "" if name == "segmentation" else "ask for registration, or "
            return (
                f"has its {name} on another grid than its {subject.reference} ({_shown(grid)} against "
                f"{_shown(reference)}): {advice}resample it."
            )
    return None


def _shown(grid: Geometry) -> str:
    size = " x ".join(str(n) for n in grid.size)
    spacing = " x ".join(f"{step:.3g}" for step in grid.spacing)
    origin = ", ".join(f"{value:.1f}" for value in grid.origin)
    return f"{size} voxels of {spacing} mm from ({origin})"
