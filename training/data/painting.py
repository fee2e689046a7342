"""Pathology painted into scans of heads that have little of it.

What a network learns of lesions from simulated heads alone carries over to scans but in part: there it must tell them
amid the texture, partial volume and shading of a scan. Where lesions lie and how bright they are is the simulator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor
from torch.nn.functional import pad

from MissingModalitySynthLib.input_range import LARGEST_BRAIN
from MissingModalitySynthLib.intensity import BRIGHTEST, DARKEST
from MissingModalitySynthLib.segmentation import CLASSES
from MissingModalitySynthLib.volume import Volume

from ..batches import KEPT_CASES
from ..simulation.anatomy import HEAD_MARGIN, VENTRICLE_DEPTH, Anatomy, box_of, finish_anatomy
from ..simulation.pathology import paint_pathology
from ..simulation.protocols import canonical_protocol, contrast, wide_protocol
from ..simulation.randomness import device_generator, slight_blur
from ..simulation.simulator import BRIGHT, texture_field, texture_levels
from ..simulation.tissues import CLASS, FIRST_LESION, LEVELS, SEVERITY, draw_subject
from ..tissue_classes import tissues_of_t1
from .cache import CanonicalSubject

_EDGE = 0.5  # voxels, SD of the blur of painted edges
_SIMULATED = {"CSF": "subarachnoid CSF", "grey matter": "cortex", "white matter": "white matter"}


@dataclass(frozen=True, eq=False)
class Canvas:
    """A scan that pathology can be painted into.

    Attributes:
        anatomy: the scan's tissues, and where lesions may start; its labels are a box of the scan.
        corner: (3,), the scan's index of the anatomy's first voxel.
        white: the signal of white matter by contrast, as a share of the range from -1 to 1.
        samples: every second voxel of each axis, by contrast, as such shares.
    """

    anatomy: Anatomy
    corner: Tensor
    white: Mapping[str, float]
    samples: Mapping[str, np.ndarray]


@lru_cache(maxsize=KEPT_CASES)
def canvas(case: CanonicalSubject) -> Canvas | None:
    """A scan on a grid of 1 mm as a canvas; None where a skull is in it, or no T1 that tells white matter.

    It takes some seconds; those of the last scans are kept.
    """
    if "T1" not in case.images or case.mask.sum() > 1e6 * LARGEST_BRAIN:
        return None
    tissues = tissues_of_t1(Volume(case.images["T1"], case.geometry, case.name), case.mask)
    labels = np.zeros(case.mask.shape, np.uint8)
    for name, tissue in _SIMULATED.items():
        labels[tissues == CLASSES.index(name)] = CLASS[tissue]
    depth = ndimage.distance_transform_edt(case.mask)
    labels[(labels == CLASS["subarachnoid CSF"]) & (depth > VENTRICLE_DEPTH)] = CLASS["ventricular CSF"]
    corner = torch.tensor([side.start for side in box_of(labels > 0, HEAD_MARGIN)])
    white = ndimage.binary_erosion(labels == CLASS["white matter"])
    if not white.any():
        return None
    shares = {name: (image + 1) / 2 for name, image in case.images.items()}
    return Canvas(
        finish_anatomy(case.name, labels),
        corner,
        {name: float(np.median(share[white])) for name, share in shares.items()},
        {name: share[::2, ::2, ::2].copy() for name, share in shares.items()},
    )


def paint(
    scan: Canvas,
    images: Mapping[str, np.ndarray],
    start: Sequence[int],
    generator: Generator,
    strength: float = 1.0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray] | None:
    """Paint lesions, a glioma or an infarct into a crop of a scan, the same in all its contrasts.

    A lesion's signal is that of the scan's white matter, times the ratio of the simulator's signals of both. In
    sources the ratio is of a wide protocol, as in simulated sources, and the image is scaled anew, as the engine would
    scale the whole scan with this lesion in it; in targets it is of the canonical protocol, and healthy tissue keeps
    its level. The head around a tumour is not displaced.

    Args:
        images: by contrast, float32 (X, Y, Z) in [-1, BRIGHTEST], -1 outside of the head.
        start: the scan's index of the crop's first voxel; negative where the crop is padded. The crop shows some of
            the head.
        generator: on the CPU.
        strength: factor on the chances of pathology.

    Returns:
        The images as sources, those as targets, and where the lesions are, bool (X, Y, Z); None when there are none.
    """
    shape = next(iter(images.values())).shape
    origin = torch.tensor(start) - scan.corner
    sides = zip(origin.tolist(), shape, scan.anatomy.labels.shape, strict=True)
    ends = [(-first, first + size - length) for first, size, length in sides]
    healthy = pad(scan.anatomy.labels, [end for pair in reversed(ends) for end in pair])  # cut where negative
    labels = healthy.clone()
    texture = texture_field(shape, generator, device_generator(generator, labels.device), labels.device)
    level = texture_levels(texture)
    paint_pathology(labels, level, scan.anatomy, origin, generator, strength)
    lesions = labels >= FIRST_LESION
    if not lesions.any():
        return None
    soft = slight_blur(lesions.float(), _EDGE) * lesions
    # fading kinds keep what is under them, with its noise and partial volume; others replace it
    fading = torch.isin(labels, torch.tensor(list(SEVERITY))) & (healthy == CLASS["white matter"])
    rows = labels.long() * LEVELS + level
    subject = draw_subject(generator)
    sources, targets = {}, {}
    for name, image in images.items():
        share = (torch.from_numpy(image) + 1) / 2
        for role, draw in ((sources, wide_protocol), (targets, canonical_protocol)):
            protocol = draw(name, generator)
            table = contrast(name, subject[protocol["field"]], protocol)
            ratio = (table / table[CLASS["white matter"], LEVELS // 2]).flatten()[rows]
            lesion = torch.where(fading, share, scan.white[name]) * ratio
            role[name] = torch.lerp(share, lesion, soft).numpy()
    sources = {name: share / _brighter(scan.samples[name], share, start) for name, share in sources.items()}
    for role in (sources, targets):
        for name, share in role.items():
            role[name] = np.where(images[name] > -1, (2 * share - 1).clip(DARKEST, BRIGHTEST), -1).astype(np.float32)
    return sources, targets, lesions.numpy()


def _brighter(samples: np.ndarray, crop: np.ndarray, start: Sequence[int]) -> float:
    """How much brighter the whole scan becomes with a crop of it changed: the ratio of its percentiles, at least 1."""
    painted = samples.copy()
    inside, taken = [], []
    for first, size, count in zip(start, crop.shape, samples.shape, strict=True):
        low = max(-(-first // 2), 0)  # the first sample in the crop
        high = max(min((first + size + 1) // 2, count), low)
        taken.append(slice(low, high))
        inside.append(slice(2 * low - first, 2 * (high - 1) - first + 1, 2))
    painted[tuple(taken)] = crop[tuple(inside)]
    before, after = (np.quantile(values, BRIGHT) for values in (samples, painted))
    return max(float(after / before), 1.0)
