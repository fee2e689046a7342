"""Finding subjects on disk: BraTS, IXI, BIDS, one folder a subject, or a CSV table.

A layout is a rule that tells from a file's place and name which subject it belongs to. Which contrast the file is, the
engine's ``guess_modality`` tells for all of them.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.file_headers import file_format
from MissingModalitySynthLib.modality import MODALITIES, canonical_name, guess_modality

from .subjects import Subject

SEGMENTATION = "segmentation"
_BRATS = re.compile(r"(brats.*)[-_](t1|t1n|t1ce|t1c|t2|t2w|flair|t2f|seg)\.nii(\.gz)?", re.IGNORECASE)
_IXI = re.compile(r"(IXI\d+-[A-Za-z]+-\d+)-(T1|T2|PD)\.nii(\.gz)?", re.IGNORECASE)
_BIDS = re.compile(r"(sub-[A-Za-z0-9]+(?:_ses-[A-Za-z0-9]+)?)_.+")
_BIDS_RUN = re.compile(r"_run-0*(\d+)")
_SEGMENTATION_NAME = re.compile(
    r"(?<![a-z])(d?seg|segmentation|lesions?|tumou?rs?|(auto)?fused)(?![a-z])", re.IGNORECASE
)
_NO_SUBJECTS = ("derivatives", "sourcedata", "code")


def _brats(path: Path) -> str | None:
    match = _BRATS.fullmatch(path.name)
    return match and match[1]


def _ixi(path: Path) -> str | None:
    match = _IXI.fullmatch(path.name)
    return match and match[1]


def _bids(path: Path) -> str | None:
    match = _BIDS.fullmatch(path.name)
    if match is None or path.parent.name != "anat" or path.parts[0] in ("sourcedata", "code"):
        return None
    # Lesion masks are derivatives by the standard; a derivative's images are copies of the raw ones.
    return match[1] if path.parts[0] != "derivatives" or _role(path) == SEGMENTATION else None


def _folders(path: Path) -> str | None:
    return path.parts[0] if len(path.parts) > 1 and path.parts[0] not in _NO_SUBJECTS else None


# From the most to the least specific.
_RULES: Mapping[str, tuple[Callable[[Path], str | None], str]] = {
    "brats": (_brats, "BraTS2021_00000_t1.nii.gz or BraTS-GLI-00000-000-t1n.nii.gz"),
    "ixi": (_ixi, "IXI002-Guys-0828-T1.nii.gz"),
    "bids": (_bids, "sub-01[/ses-1]/anat/sub-01[_ses-1]_T1w.nii.gz"),
    "folders": (_folders, "one folder a subject with the contrasts in the file names"),
}
LAYOUTS = ("auto", *_RULES, "csv")


def find_subjects(folder: Path, layout: str = "auto", report: Callable[[str], None] = print) -> list[Subject]:
    """The subjects of a data set, sorted by name.

    Args:
        folder: the data set's folder, searched to any depth; for "csv" the table, see :func:`read_table`.
        layout: "brats", "ixi", "bids", "folders" (the folders right under ``folder`` are the subjects), "csv", or
            "auto", which takes the layout that explains most images. Files with "seg", "lesion" or "tumor" in their
            names and no contrast, or at the end, are segmentations.
        report: receives one sentence about what was found.

    Raises:
        InputError: there is no such folder or layout, it holds no subject, or a subject has two files for one contrast
            (of BIDS runs, the first is taken).
    """
    folder = Path(folder)
    if layout not in LAYOUTS:
        raise InputError(f"'{layout}' is no layout of data: use one of {', '.join(LAYOUTS)}.")
    if not folder.exists():
        raise InputError(f"'{folder}' does not exist.")
    if layout == "auto" and folder.suffix.lower() == ".csv":
        layout = "csv"
    if layout == "csv":
        subjects = read_table(folder)
    else:
        layout, found = _in_layout(folder, layout)
        subjects = [_subject(name, found[name], layout == "bids") for name in sorted(found)]
    counts = Counter(name for subject in subjects for name in subject.files)
    counts[SEGMENTATION] = sum(subject.segmentation is not None for subject in subjects)
    listed = ", ".join(f"{name} {counts[name]}" for name in (*MODALITIES, SEGMENTATION) if counts[name])
    patients = len({subject.patient for subject in subjects})
    report(f"'{folder}': layout {layout}, {len(subjects)} subjects of {patients} patients ({listed}).")
    return subjects


def read_table(path: Path) -> list[Subject]:
    """The subjects of a CSV file (UTF-8, commas), sorted by name.

    Its header names the columns: "subject", contrasts by any name that ``canonical_name`` knows, and optionally
    "segmentation" and "patient" (for several examinations of one person). Paths are relative to the table; an empty
    cell is a contrast that the subject lacks.

    Raises:
        InputError: no such table, no column "subject", an unknown column, a subject twice or without a name, or no row.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"'{path}' can't be read as a CSV table in UTF-8 ({error}).") from error
    if not rows:
        raise InputError(f"'{path}' holds no subjects: a header (subject,T1,T2,...,segmentation) and rows are needed.")
    if "subject" not in rows[0]:
        raise InputError(f"'{path}' has no column 'subject', only {', '.join(map(str, rows[0]))}.")
    subjects: dict[str, Subject] = {}
    for row in rows:
        if None in row:
            raise InputError(f"'{path}' has more cells than columns in the row of subject '{row['subject']}'.")
        cells = {column.strip(): cell.strip() for column, cell in row.items()}
        name, patient = cells.pop("subject"), cells.pop("patient", "")
        if not name or name in subjects:
            raise InputError(
                f"'{path}' has {'two rows for subject ' + repr(name) if name else 'a row without subject'}."
            )
        paths = {column: path.parent / cell for column, cell in cells.items() if cell}
        segmentation = paths.pop(SEGMENTATION, None)
        files: dict[str, Path] = {}
        for column, file in paths.items():
            if files.setdefault(canonical_name(column), file) is not file:
                raise InputError(f"'{path}' has two columns for {canonical_name(column)}.")
        subjects[name] = Subject(name, files, segmentation, patient)
    return [subjects[name] for name in sorted(subjects)]


def _in_layout(folder: Path, layout: str) -> tuple[str, dict[str, list[Path]]]:
    """The layout and, by subject, the files that count; of the layouts that explain as many, the most specific."""
    relative = [path.relative_to(folder) for path in _files(folder) if file_format(path)]
    # "._name" are macOS' resource forks, not images
    images = sorted(path for path in relative if not any(part.startswith(".") for part in path.parts) and _role(path))
    best: tuple[str, dict[str, list[Path]]] = ("", {})
    for name, (rule, _) in _RULES.items():
        if layout in ("auto", name):
            found: dict[str, list[Path]] = {}
            for path in images:
                if subject := rule(path):
                    found.setdefault(subject, []).append(folder / path)
            if sum(map(len, found.values())) > sum(map(len, best[1].values())):
                best = (name, found)
    if not best[1]:
        sought = "; ".join(f"{name}: {what}" for name, (_, what) in _RULES.items() if layout in ("auto", name))
        raise InputError(f"No subjects were found in '{folder}'; looked for {sought}.")
    return best


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, also of folders that are linked to; each such folder once, as links may be circular."""
    seen = {folder.resolve()}
    for parent, folders, names in os.walk(folder, followlinks=True):
        inside = {(Path(parent) / name).resolve(): name for name in sorted(folders, reverse=True)}
        folders[:] = [name for path, name in inside.items() if path not in seen]
        seen |= inside.keys()
        yield from (path for name in names if (path := Path(parent) / name).is_file())


def _role(path: Path) -> str | None:
    """The contrast, "segmentation", or None for a file that is neither."""
    name = path.name[: -len(file_format(path))]
    words = list(_SEGMENTATION_NAME.finditer(name))
    if words and words[-1].end() == len(name):
        return SEGMENTATION  # "t1_seg"; but "tumor07_t1" is a contrast
    return guess_modality(path) or (SEGMENTATION if words else None)


def _subject(name: str, paths: list[Path], first_run: bool) -> Subject:
    if first_run:  # repetitions of the same scan
        paths = sorted(paths, key=lambda path: int(match[1]) if (match := _BIDS_RUN.search(path.name)) else 0)
    files: dict[str, Path] = {}
    for path in paths:
        role = _role(path)
        other = files.setdefault(role, path)
        if other is not path and not (first_run and _BIDS_RUN.search(path.name)):
            raise InputError(
                f"Subject '{name}' has two files for its {role}, '{other}' and '{path}': remove one, or list the files "
                "to use in a CSV table."
            )
    segmentation = files.pop(SEGMENTATION, None)
    return Subject(name, files, segmentation)
