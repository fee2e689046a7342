"""What is evaluated: acquired subjects on their own grid, or simulated heads that no training has seen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from MissingModalitySynthLib.canonical import CanonicalGrid, canonical_grid, from_canonical, resample_to, to_canonical
from MissingModalitySynthLib.errors import InputError
from MissingModalitySynthLib.intensity import head_mask, normalise
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.volume import Geometry, Volume
from MissingModalitySynthLib.volume_io import read_volume

from ..configuration import SIMULATOR_OPTIONS
from ..data.cache import read_labels, registered
from ..data.subjects import Subject, same_grid
from ..examples import load_anatomies
from ..loop import generator_at
from ..simulation.simulator import simulate
from ..tissue_classes import classes_of, tissues_of_t1
from .lesions import Lesions, find_lesions

HEAD_MM = (192, 224, 192)  # along R, A, S: a simulated head with air around it, as scanners show it
_HELD_OUT = 1 << 41  # number of the first simulated head, far behind those of any training
_RAS_IN_LPS = np.diag((-1.0, -1.0, 1.0))
_SEGMENTER_MULTIPLE = 32
_GLIOMAS = re.compile(r"brats-?gli|brats-?20|tcga|ucsf-pdgm|upenn-gbm", re.IGNORECASE)


def is_glioma(name: str) -> bool:
    """Whether a subject's name says that it is of a collection of gliomas, such as BraTS-GLI or TCGA."""
    return _GLIOMAS.match(name) is not None


@dataclass(frozen=True, eq=False)
class Case:
    """A head whose contrasts are known; all arrays are [i, j, k] on one grid.

    Attributes:
        name: of the subject.
        sources: what a model starts from, by contrast.
        targets: what its results are compared with; of a scanned subject the same volumes. A simulated one has clean
            images of the canonical protocols here, and as sources such of wide protocols with artefacts.
        mask: where every contrast shows the head (or the brain, where skull-stripped); bool.
        tissues: indices of ``segmentation.CLASSES``; None where unknown.
        lesion: bool; None where unknown or without a voxel.
        brain: bool, of a whole head; None where unknown or skull-stripped already.
    """

    name: str
    sources: Mapping[str, Volume]
    targets: Mapping[str, Volume]
    mask: np.ndarray
    tissues: np.ndarray | None = None
    lesion: np.ndarray | None = None
    brain: np.ndarray | None = None

    @cached_property
    def lesions(self) -> Lesions | None:
        """The single lesions and the white matter around them; None where either is unknown."""
        if self.lesion is None or self.tissues is None:
            return None
        spacing = next(iter(self.targets.values())).geometry.spacing
        return find_lesions(self.lesion, self.tissues == CLASSES.index("white matter"), spacing)


def read_case(
    subject: Subject,
    *,
    register: bool = False,
    folder: Path | None = None,
    segmenter: nn.Module | None = None,
    brain: Path | None = None,
) -> Case:
    """Read a subject; every contrast is brought to the grid of its reference contrast, and nothing else is done to it.

    Args:
        register: rigidly register contrasts that are on another grid, as for training.
        folder: keeps the registrations' transforms.
        segmenter: tells the tissues on the reference contrast; else three classes by thresholds, where there is a T1.
        brain: label map of the brain of a subject whose whole head is shown.

    Raises:
        InputError: a file cannot be used, or the contrasts have no voxel of the head in common; names the subject.
    """
    try:
        volumes = {name: read_volume(path) for name, path in subject.files.items()}
        if register:
            volumes = registered(subject, volumes, folder)
        grid = volumes[subject.reference].geometry
        for name, volume in volumes.items():
            same = same_grid(volume.geometry, grid)
            volumes[name] = replace(volume, geometry=grid) if same else resample_to(volume, grid)
        mask = np.logical_and.reduce([head_mask(volume.array) for volume in volumes.values()])
        if not mask.any():
            raise InputError("its contrasts show no part of the head in common; register them first.")
        lesion = read_labels(subject.segmentation, grid) > 0 if subject.segmentation else None
        inner = read_labels(brain, grid) > 0 if brain else None
    except InputError as error:
        raise type(error)(f"Subject '{subject.name}': {error}") from error
    tissues = None
    if segmenter is not None:
        reference = volumes[subject.reference]
        tissues = segment_native(segmenter, reference, mask)
    elif "T1" in volumes:
        tissues = tissues_of_t1(volumes["T1"], mask if inner is None else mask & inner)
    if tissues is not None and lesion is not None:
        tissues = np.where(lesion & mask, CLASSES.index("lesion"), tissues)
    return Case(subject.name, volumes, volumes, mask, tissues, _or_none(lesion, mask), _or_none(inner, mask))


def simulated_cases(configuration: Mapping[str, Any], count: int) -> Iterator[Case]:
    """Simulated heads of fixed seeds: the recipe's anatomies, with deformations, tissues, protocols and pathology of
    their own; no contrast is a random one.

    They are whole (192 x 224 x 192 mm around the brain, less of a smaller anatomy), not crops as in training: the
    engine scales intensities by what it is given, and a crop does not know how bright the head's brightest is.
    """
    data, modalities = configuration["data"], configuration["modalities"]
    anatomies = load_anatomies(data["anatomies"])
    options = {key: data[key] for key in SIMULATOR_OPTIONS} | {"random_contrast": 0.0}
    for number in range(count):
        anatomy = anatomies[number % len(anatomies)]
        shape = tuple(
            min(size, -(-extent // 16) * 16) for size, extent in zip(HEAD_MM, anatomy.labels.shape, strict=True)
        )
        geometry = Geometry(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), _RAS_IN_LPS)
        case = simulate(
            anatomy,
            shape=shape,
            generator=generator_at(configuration["seed"], _HELD_OUT + number),
            sources=modalities,
            targets=modalities,
            **options,
        )
        name = f"simulated-{number + 1:03d}"
        stripped = case.protocol["skull_stripped"]
        brain = case.brain_mask.numpy()
        volumes = [
            {key: Volume(image.numpy().astype(np.float32), geometry, f"{name} {key}") for key, image in images.items()}
            for images in (case.sources, case.targets)
        ]
        head = brain if stripped else head_mask(volumes[1][modalities[0]].array)
        yield Case(
            name,
            *volumes,
            mask=head,
            tissues=classes_of(case.labels).numpy() * head,
            lesion=_or_none(case.lesion_mask.numpy(), head),
            brain=None if stripped else brain & head,
        )


def segmenter_grid(volume: Volume, mask: np.ndarray) -> CanonicalGrid:
    """The grid on which a segmenter sees a head."""
    return canonical_grid(volume, (1.0, 1.0, 1.0), _SEGMENTER_MULTIPLE, mask=mask)


@torch.inference_mode()
def segment(segmenter: nn.Module, volume: Volume, grid: CanonicalGrid) -> np.ndarray:
    """Indices of ``segmentation.CLASSES`` on the canonical grid."""
    image = torch.from_numpy(normalise(to_canonical(volume, grid), native=volume.array)[0])[None, None]
    return segmenter(image).argmax(dim=1)[0].numpy()


def segment_native(segmenter: nn.Module, volume: Volume, mask: np.ndarray) -> np.ndarray:
    """Indices of ``segmentation.CLASSES`` on the volume's own grid, 0 outside the mask."""
    grid = segmenter_grid(volume, mask)
    labels = segment(segmenter, volume, grid)
    shares = [from_canonical((labels == index).astype(np.float32), grid).array for index in range(len(CLASSES))]
    return np.argmax(shares, axis=0) * mask


def _or_none(mask: np.ndarray | None, within: np.ndarray) -> np.ndarray | None:
    return mask & within if mask is not None and (mask & within).any() else None
