"""Lesions painted into a label map: white-matter lesions, gliomas and infarcts.

Classes and severities are painted together: `labels` holds tissue classes, `severity` the level within a lesion class
(0 to LEVELS - 1), so that borders of oedema and of white-matter lesions fade into white matter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from training.simulation.anatomy import Anatomy
from training.simulation.randomness import chance, integer, smooth_field, uniform
from training.simulation.tissues import CLASS, LEVELS

WHITE = (CLASS["white matter"], CLASS["cerebellar white matter"], CLASS["brainstem"])
SOLID = tuple(range(CLASS["white matter"], CLASS["brainstem"] + 1))
PATHOLOGY = {"lesions": 0.45, "glioma": 0.25, "infarct": 0.08}  # chances in a head


class Mass(NamedTuple):
    """A space-occupying lesion: centre in voxels, radius and push of `deformation.displace_mass`."""

    centre: Tensor
    radius: float
    push: float


def paint_pathology(
    labels: Tensor, severity: Tensor, anatomy: Anatomy, origin: Tensor, generator: Generator, strength: float = 1.0
) -> tuple[list[str], Mass | None]:
    """Paint none, one or several kinds of pathology into a region of an anatomy, in place.

    labels, severity: uint8 (X, Y, Z), of the region. origin: (3,), the region's lowest index in the anatomy, which may
    be negative. strength: factor on the chances `PATHOLOGY`. Returns the kinds that were drawn, some of which may have
    found no place, and the mass effect of a tumour.
    """
    drawn = {kind: chance(generator, strength * probability) for kind, probability in PATHOLOGY.items()}
    if drawn["lesions"]:
        white_matter_lesions(labels, severity, anatomy, origin, generator)
    if drawn["infarct"]:
        infarct(labels, severity, anatomy.white_matter, origin, generator)
    mass = glioma(labels, severity, anatomy.white_matter, origin, generator) if drawn["glioma"] else None
    return [kind for kind, present in drawn.items() if present], mass


def _one_of(labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    return torch.isin(labels, torch.tensor(classes, dtype=labels.dtype, device=labels.device))


def _blob(shape: torch.Size, centre: Tensor, radii: Tensor, roughness: float, spacing: float, generator: Generator,
          device: torch.device) -> tuple[tuple[slice, ...], Tensor]:  # fmt: skip
    """A box around `centre` and in it the distance from the centre in units of the (irregular) radius."""
    reach = (radii * (1.3 + roughness)).ceil().long() + 2
    box = tuple(slice(max(int(c - r), 0), min(int(c + r) + 1, n)) for c, r, n in zip(centre, reach, shape, strict=True))
    axes = [(torch.arange(s.start, s.stop) - c) / r for s, c, r in zip(box, centre, radii, strict=True)]
    distance = (axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2).sqrt().to(device)
    return box, distance + roughness * smooth_field(generator, distance.shape, spacing, device)


def _pick(seeds: Tensor, origin: Tensor, shape: torch.Size, generator: Generator, margin: int) -> Tensor | None:
    """A random seed voxel at least `margin` voxels inside the region, relative to the region's origin."""
    if not len(seeds):
        return None
    for _ in range(50):
        local = seeds[integer(generator, 0, len(seeds) - 1)].long() - origin
        if bool(((local >= margin) & (local < torch.tensor(shape) - margin)).all()):
            return local.float()
    return None


def white_matter_lesions(
    labels: Tensor, severity: Tensor, anatomy: Anatomy, origin: Tensor, generator: Generator
) -> None:
    """Multiple-sclerosis-like and vascular lesions in place: few large, many small; most near the ventricles, some
    beside the cortex, others anywhere in white matter."""
    places = (anatomy.periventricular, anatomy.juxtacortical, anatomy.white_matter)
    count = integer(generator, 1, 6) if chance(generator, 0.5) else integer(generator, 6, 40)
    enhancing = chance(generator, 0.15)
    scale = uniform(generator, 0.7, 1.3)
    for _ in range(count):
        place = places[0 if chance(generator, 0.55) else 1 if chance(generator, 0.35) else 2]
        centre = _pick(place, origin, labels.shape, generator, 4)
        if centre is None:
            continue
        radius = scale * uniform(generator, 1.2, 3.0) * (uniform(generator, 1, 3.0) if chance(generator, 0.25) else 1)
        radii = radius * (0.6 + 0.9 * torch.rand(3, generator=generator))
        box, distance = _blob(labels.shape, centre, radii, 0.25, 3.5, generator, labels.device)
        inside = (distance < 1.2) & _one_of(labels[box], WHITE)
        peak = uniform(generator, 0.45, 1.0)
        level = ((1.25 - distance) * 2.5).clamp(0, 1) * peak * (LEVELS - 1)
        new = torch.where(inside, level.round().byte(), torch.zeros_like(severity[box]))
        already = labels[box] == CLASS["lesion"]
        severity[box] = torch.where(inside | already, torch.maximum(new, severity[box] * already), severity[box])
        kind = "enhancing lesion" if enhancing and chance(generator, 0.3) else "lesion"
        labels[box] = torch.where(inside, CLASS[kind], labels[box])
        if peak > 0.85 and radius > 3.5 and chance(generator, 0.4):
            hole = inside & (distance < 0.4)
            labels[box] = torch.where(hole, CLASS["cavity"], labels[box])
            severity[box] = torch.where(hole, LEVELS // 2, severity[box])


def glioma(labels: Tensor, severity: Tensor, white: Tensor, origin: Tensor, generator: Generator) -> Mass | None:
    """A tumour in place: oedema along the white matter; solid, enhancing (rim) and necrotic parts.

    Returns the mass effect, or None if the region has no place for a tumour.
    """
    centre = _pick(white, origin, labels.shape, generator, 10)
    if centre is None:
        return None
    device = labels.device
    texture = severity.clone()
    core = uniform(generator, 5, 20)
    radii = core * (0.75 + 0.5 * torch.rand(3, generator=generator))
    spread = radii + uniform(generator, 4, 30)
    box, far = _blob(labels.shape, centre, spread, uniform(generator, 0.2, 0.45), 9, generator, device)
    level = ((1.1 - far) * uniform(generator, 3, 8)).clamp(0, 1) * uniform(generator, 0.6, 1.0) * (LEVELS - 1)
    level = (level * (0.9 + 0.08 * smooth_field(generator, far.shape, 5, device))).clamp(0, LEVELS - 1)
    oedema = _one_of(labels[box], WHITE) & (level >= 1)
    severity[box] = torch.where(oedema, level.byte(), severity[box])
    labels[box] = torch.where(oedema, CLASS["oedema"], labels[box])

    box, near = _blob(labels.shape, centre, radii, uniform(generator, 0.12, 0.3), 6, generator, device)
    solid = (near < 1) & (_one_of(labels[box], SOLID) | (labels[box] == CLASS["oedema"]))
    region = torch.where(solid, CLASS["tumour"], labels[box])
    if chance(generator, 0.7):  # high grade
        rim = uniform(generator, 1.5, 5) / core
        outer = uniform(generator, 0.75, 1.0)
        patchy = smooth_field(generator, near.shape, 5, device) > uniform(generator, -2.5, -0.3)
        region = torch.where(solid & (near < outer) & patchy, CLASS["enhancing tumour"], region)
        if chance(generator, 0.8):
            region = torch.where(solid & (near < outer - rim), CLASS["cavity"], region)
    labels[box] = region
    severity[box] = torch.where(solid, texture[box], severity[box])  # oedema had left its own
    return Mass(centre, 1.4 * core, core * uniform(generator, 0.05, 0.45))


def infarct(labels: Tensor, severity: Tensor, white: Tensor, origin: Tensor, generator: Generator) -> None:
    """A wedge-like region of grey and white matter, in older ones with a fluid-filled centre; in place."""
    centre = _pick(white, origin, labels.shape, generator, 8)
    if centre is None:
        return
    radii = uniform(generator, 4, 22) * (0.6 + 0.8 * torch.rand(3, generator=generator))
    box, distance = _blob(labels.shape, centre, radii, 0.3, 8, generator, labels.device)
    inside = (distance < 1) & _one_of(labels[box], SOLID)
    labels[box] = torch.where(inside, CLASS["infarct"], labels[box])
    if chance(generator, 0.5):
        labels[box] = torch.where(inside & (distance < uniform(generator, 0.3, 0.8)), CLASS["cavity"], labels[box])
