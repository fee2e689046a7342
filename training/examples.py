"""What the stages learn from: simulated heads, scans, or a mixture of both, as a configuration says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from MissingModalitySynthLib.errors import InputError

from . import distributed
from .batches import Pair, by_number, simulated_pairs
from .classifier import Views, contrast_views
from .configuration import SIMULATOR_OPTIONS
from .simulation.anatomy import Anatomy, mni_anatomy, procedural_head, synthseg_anatomy

Examples = Callable[[int], Pair]


@lru_cache(maxsize=1)
def load_anatomies(folder: str | None) -> list[Anatomy]:
    """The MNI152 tissue maps and every label map of a folder; for "procedural", a made-up head alone."""
    if folder == "procedural":
        return [procedural_head((96, 104, 96))]
    paths = sorted(Path(folder).glob("training_seg_*.nii.gz")) if folder else []
    if folder and not paths:
        raise InputError(f"The folder '{folder}' has no label maps named training_seg_*.nii.gz.")
    return [mni_anatomy(), *(synthseg_anatomy(path) for path in paths)]


def make_views(configuration: dict[str, Any], run: Path) -> Callable[[int], Views]:
    """What the classifier learns from, by number: simulated heads alone, described once."""
    return contrast_views(
        partial(load_anatomies, configuration["data"]["anatomies"]),
        configuration["seed"],
        modalities=configuration["modalities"],
        cases=configuration["classifier"]["cases"],
        folder=run / "classifier" / "heads",
        device=configuration["device"],
    )


def make_examples(
    configuration: dict[str, Any],
    run: Path,
    *,
    all_images: bool = False,
    contrasts: Sequence[str] | None = None,
    targets_alone: Sequence[str] | None = None,
) -> Examples:
    """Training pairs by number: simulated heads, scans of the split "train" (in ``run/splits.json``), or a mixture.

    ``all_images``, ``contrasts`` and ``targets_alone`` as in :func:`~.batches.simulated_pairs`.
    """
    data, modalities, seed = (configuration[key] for key in ("data", "modalities", "seed"))
    share = data["real_share"] if data["real"] else 0.0
    common = {key: data[key] for key in ("shapes", "pairs_per_case", "source_weights")}
    common |= {"device": configuration["device"]}
    streams: list[Callable[[torch.Generator], Iterator[Pair]]] = []
    shares = [weight for weight in (1 - share, share) if weight > 0]
    if share < 1:
        simulated = {key: data[key] for key in SIMULATOR_OPTIONS}
        simulated |= {"all_images": all_images, "contrasts": contrasts, "targets_alone": targets_alone}
        heads = load_anatomies(data["anatomies"])
        streams.append(lambda g: simulated_pairs(heads, g, modalities=modalities, **common, **simulated))
    if share > 0:
        from .data.pairs import in_memory, mixed_pairs, subject_pairs

        with distributed.first_process_first():
            subjects = real_subjects(configuration, run, targets_alone)["train"]
        options = {"register": data["register"], "cache": Path(data["cache"]) if data["cache"] else None}
        skipped: dict[str, str] = {}  # shared by the streams of all cases: a broken subject is warned about once
        if data["kept_subjects"]:
            options = {"load": in_memory(subjects, data["kept_subjects"], **options)}
        options |= {"policy": data["broken"], "skipped": skipped, "artefacts": data["real_artefacts"]}
        options |= {"pathology": data["real_pathology"]}
        options |= {"targets": None if targets_alone else data["real_targets"], "targets_alone": targets_alone}
        streams.append(lambda g: subject_pairs(subjects, g, **common, **options))
    if len(streams) == 1:
        return by_number(streams[0], seed, data["pairs_per_case"], data["cases"])
    in_a_row = data["pairs_per_case"]  # a case is of one stream: nothing of a head goes to waste
    return by_number(lambda g: mixed_pairs([s(g) for s in streams], shares, g, in_a_row), seed, in_a_row, data["cases"])


def real_subjects(
    configuration: dict[str, Any], run: Path, targets_alone: Sequence[str] | None = None
) -> dict[str, list]:
    """The scanned subjects by split, each with its contrasts among the configuration's, or ``targets_alone``."""
    from .data.readers import find_subjects
    from .data.splits import split_subjects
    from .data.subjects import usable_subjects

    data, modalities = configuration["data"], targets_alone or configuration["modalities"]
    found = [
        replace(subject, files={name: path for name, path in subject.files.items() if name in modalities})
        for subject in find_subjects(Path(data["real"]), data["layout"])
    ]
    fewest = 1 if targets_alone else 2
    usable = usable_subjects(found, fewest=fewest, policy=data["broken"], register=data["register"])
    return split_subjects(usable, data["splits"], configuration["seed"], run / "splits.json")
