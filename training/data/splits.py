"""Splits by patient, written to disk once and read back ever after."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

from MissingModalitySynthLib.errors import InputError

from .atomic import replacing
from .subjects import Subject


def split_subjects(
    subjects: Sequence[Subject], fractions: Mapping[str, float], seed: int, path: Path
) -> dict[str, list[Subject]]:
    """Deal subjects out to splits so that all examinations of a patient are in the same one.

    The first call writes the splits as JSON; later calls read them, so that a test set stays a test set. The order of
    the subjects does not matter.

    Args:
        subjects: names are unique.
        fractions: share of the patients by split, such as {"train": 0.8, "validation": 0.1, "test": 0.1}; sum is 1.
            A split of share 0 is empty, say where all subjects are to be trained on.
        seed: another seed deals them out differently.
        path: the JSON file.

    Raises:
        InputError: the fractions do not add up to 1 or leave a split empty that is not meant to be; the file is
            damaged, was made with other fractions or another seed, or for other subjects than the ones given.
        OutputError: the file can't be written.
    """
    by_name = {subject.name: subject for subject in subjects}
    if len(by_name) < len(subjects):
        raise InputError("The names of the subjects are not unique, so they can't be split.")
    record = _read(path) if path.exists() else None
    if record is None:
        record = {"seed": seed, "fractions": dict(fractions), "splits": _deal(subjects, fractions, seed)}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    elif (record["seed"], record["fractions"]) != (seed, dict(fractions)):
        raise InputError(
            f"'{path}' was made with seed {record['seed']} and fractions {record['fractions']}, not with {seed} and "
            f"{dict(fractions)}: keep those, or name another file."
        )
    _require_same(record["splits"], by_name, path)
    return {split: [by_name[name] for name in names] for split, names in record["splits"].items()}


def _deal(subjects: Sequence[Subject], fractions: Mapping[str, float], seed: int) -> dict[str, dict[str, str]]:
    """Patient by name of subject, by split."""
    if not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6) or min(fractions.values(), default=0) < 0:
        raise InputError(f"The fractions of the splits must be at least 0 and add up to 1, not {dict(fractions)}.")
    # A hash orders them alike on every platform and in every version of every library.
    patients = sorted(
        {subject.patient for subject in subjects}, key=lambda name: sha256(f"{seed} {name}".encode()).digest()
    )
    ends = [round(share * len(patients)) for share in accumulate(fractions.values())]
    splits = {}
    for split, start, end in zip(fractions, [0, *ends], ends, strict=False):
        if start == end and fractions[split] > 0:
            raise InputError(f"{len(patients)} patients are too few: none is left for the split '{split}'.")
        chosen = set(patients[start:end])
        members = sorted((subject.name, subject.patient) for subject in subjects if subject.patient in chosen)
        splits[split] = dict(members)
    return splits


def _require_same(splits: Mapping[str, Mapping[str, str]], subjects: Mapping[str, Subject], path: Path) -> None:
    known = {name: patient for split in splits.values() for name, patient in split.items()}
    patients = [set(split.values()) for split in splits.values()]
    if sum(map(len, splits.values())) > len(known) or sum(map(len, patients)) > len(set().union(*patients)):
        raise InputError(f"'{path}' has a subject or patient in two splits: delete it to have new ones made.")
    gone, new = sorted(known.keys() - subjects.keys()), sorted(subjects.keys() - known.keys())
    moved = sorted(name for name in known.keys() & subjects.keys() if known[name] != subjects[name].patient)
    what = (("missing now", gone), ("new", new), ("of another patient now", moved))
    changes = [
        f"{len(names)} {change} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" for change, names in what if names
    ]
    if changes:
        raise InputError(
            f"'{path}' was made for other subjects than there are: {'; '.join(changes)}. Restore the data, or name "
            "another file for new splits."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        valid = {"seed", "fractions", "splits"} <= record.keys() and all(
            isinstance(split, dict) for split in record["splits"].values()
        )
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"'{path}' can't be read as splits of subjects ({error}).") from error
    if not valid:
        raise InputError(f"'{path}' is no file of splits: it needs seed, fractions and splits.")
    return record
