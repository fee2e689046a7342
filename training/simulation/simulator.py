"""Simulate the contrasts of one head: paired clean targets and realistically acquired sources.

The signal of a voxel is the mixture of its tissues' signals. All contrasts are linear in the tissue fractions, so the
signals are computed once per class and texture level (a few hundred numbers), looked up in the anatomy, and the
*images* are interpolated and blurred: this mixes signals, not parameters, and equals blurring fuzzy tissue maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from training.simulation import signals
from training.simulation.anatomy import DISTANCE_STEP, SHADE_STEP, Anatomy
from training.simulation.artefacts import acquire
from training.simulation.deformation import displace_mass, sampling_positions
from training.simulation.pathology import glioma, infarct, white_matter_lesions
from training.simulation.randomness import (
    apply_matrices,
    chance,
    device_generator,
    gaussian_matrix,
    smooth_field,
    uniform,
)
from training.simulation.tissues import CLASS, FIRST_LESION, LEVELS, TEXTURE_RANGE, TISSUES, Relaxation, draw_subject

MODALITIES = ("T1", "T1ce", "T2", "FLAIR", "PD")
TARGET_BLUR = 0.42  # mm, SD of the clean targets' point spread beyond the voxel
PATHOLOGY = {"lesions": 0.45, "glioma": 0.25, "infarct": 0.08}


@dataclass(frozen=True)
class Simulation:
    """Images of one simulated head, all (X, Y, Z) at 1 mm, axes R, A, S.

    targets, sources: modality -> float32 image, non-negative arbitrary units; targets are clean and follow the
    canonical protocol, sources are acquired with protocols from wide ranges and with artefacts.
    labels: uint8 tissue classes (`tissues.TISSUES`). lesion_mask, brain_mask: bool; outside the brain mask images are
    zero if protocol["skull_stripped"]. target_headroom, source_headroom: how much brighter the whole head is than the
    crop (ratio of their 99.5th percentiles, without artefacts): intensities are scaled by whole heads when the networks
    are used, and a crop without fluid says nothing about how bright fluid is. protocol: what was drawn.
    """

    targets: dict[str, Tensor]
    sources: dict[str, Tensor]
    labels: Tensor
    lesion_mask: Tensor
    brain_mask: Tensor
    target_headroom: dict[str, float]
    source_headroom: dict[str, float]
    protocol: dict


def contrast(modality: str, tissue: Relaxation, protocol: dict) -> Tensor:
    """Signals (classes, LEVELS) of a protocol: the sequence, the keyword arguments of its equation, the field (T),
    the dose of contrast agent (1 = standard, T1ce alone) and the share of the fat signal left by fat suppression."""
    settings = {k: v for k, v in protocol.items() if k not in ("sequence", "field", "dose", "fat")}
    t1, fat = tissue.t1, torch.ones(len(TISSUES), 1)
    fat[[CLASS["fat"], CLASS["marrow"]]] = protocol["fat"]
    if modality == "T1ce":
        t1 = signals.enhanced_t1(t1, tissue.uptake * protocol["dose"])
    match protocol["sequence"]:
        case "mprage":
            table = signals.mprage(t1, tissue.t2_star, tissue.pd * fat, **settings)
        case "spgr":
            table = signals.spoiled_gradient_echo(t1, tissue.t2_star, tissue.pd * fat, **settings)
        case "flair":
            table = signals.flair(t1, tissue.t2, tissue.pd * tissue.void * fat, **settings)
        case _:
            table = signals.spin_echo(t1, tissue.t2, tissue.pd * tissue.void * fat, **settings)
    # levels below the mean of fluid in sulci stand for partial volume with cortex
    share = 0.8 * torch.linspace(1, -1, LEVELS).clamp(min=0) ** 1.5
    fluid = CLASS["subarachnoid CSF"]
    table[fluid] += share * (table[CLASS["cortex"], LEVELS // 2] - table[fluid])
    return table


def canonical_protocol(modality: str, generator: Generator) -> dict:
    """The narrow protocol of a target image (3 T); settings vary by a few per cent."""
    jitter = uniform(generator, 0.97, 1.03)
    if modality in ("T1", "T1ce"):
        drawn = {"sequence": "mprage", "tr": 2100.0, "ti": 800 * jitter, "te": 3.0, "flip": 9.0}
        return {"field": 3.0, "dose": 1.0, "fat": 1.0} | drawn
    if modality == "FLAIR":
        null = signals.flair_null(4200, 9000)
        return {"field": 3.0, "sequence": "flair", "tr": 9000.0, "ti": null * jitter, "te": 130.0, "fat": 0.4}
    te, tr = (94 * jitter, 5500.0) if modality == "T2" else (15 * jitter, 4500.0)
    return {"field": 3.0, "sequence": "spin echo", "tr": tr, "te": te, "fat": 0.9}


def wide_protocol(modality: str, generator: Generator) -> dict:
    """A protocol as it might have been acquired, at 1.5 or 3 T."""

    def draw(low: float, high: float) -> float:
        return uniform(generator, low, high)

    field = 1.5 if chance(generator, 0.4) else 3.0
    common = {"field": field, "fat": draw(0.05, 0.5) if chance(generator, 0.35) else draw(0.5, 1.2)}
    if modality == "T1ce":
        common["dose"] = draw(0.5, 1.6)
    if modality in ("T1", "T1ce"):
        kind = draw(0, 1)
        if kind < 0.5:
            tr = draw(1800, 2500)
            ti = draw(700, 1150)
            return common | {"sequence": "mprage", "tr": tr, "ti": ti, "te": draw(2, 4.5), "flip": draw(7, 12)}
        if kind < 0.75:
            return common | {"sequence": "spgr", "tr": draw(7, 30), "te": draw(2, 6), "flip": draw(14, 32)}
        return common | {"sequence": "spin echo", "tr": draw(400, 800), "te": draw(8, 18)}
    if modality == "FLAIR":
        tr = draw(6000, 11000)
        null = signals.flair_null(4200 if field == 3.0 else 3600, tr)
        return common | {"sequence": "flair", "tr": tr, "ti": null * draw(0.92, 1.06), "te": draw(75, 140)}
    tr, te = (draw(3000, 8000), draw(75, 125)) if modality == "T2" else (draw(2000, 5500), draw(8, 32))
    return common | {"sequence": "spin echo", "tr": tr, "te": te}


def random_table(physical: Tensor, generator: Generator) -> Tensor:
    """A non-physical contrast: random mean and texture per class, mixed with the physical one; air stays dark."""
    weight = uniform(generator, 0.3, 1.0)
    mean = torch.rand(len(physical), 1, generator=generator)
    slope = 0.05 * torch.randn(len(physical), 1, generator=generator)
    drawn = (mean + slope * torch.linspace(-TEXTURE_RANGE, TEXTURE_RANGE, LEVELS)).clamp(min=0)
    table = (1 - weight) * physical / physical.amax() + weight * drawn
    table[CLASS["air"]] = 0
    return table


def _texture(shape: Sequence[int], generator: Generator, noise_generator: Generator, device: torch.device) -> Tensor:
    """A unit-variance field: fine grain and smooth variation in about equal shares."""
    grain = smooth_field(noise_generator, shape, uniform(generator, 1.5, 2.5), device)
    share = uniform(generator, 0.4, 0.65)
    return share * grain + (1 - share) * 1.2 * smooth_field(generator, shape, 18, device)


def _vessels(shape: Sequence[int], generator: Generator, device: torch.device) -> Tensor:
    """Tubes: where two smooth fields cross zero together."""
    first, second = (smooth_field(generator, shape, 7, device) for _ in range(2))
    return first**2 + second**2 < uniform(generator, 0.01, 0.07)


def _sample(volumes: Tensor, positions: Tensor, mode: str = "bilinear") -> Tensor:
    """Interpolate (C, I, J, K) at index positions (X, Y, Z, 3); zero outside. Slabs keep all CPU cores busy."""
    size = torch.tensor(volumes.shape[1:], device=positions.device)
    grid = ((2 * positions + 1) / size - 1).flip(-1)
    slabs = 8 if grid.shape[0] % 8 == 0 and grid.device.type == "cpu" else 1
    grid = grid.unflatten(0, (slabs, -1))
    sampled = grid_sample(volumes.expand(slabs, -1, -1, -1, -1), grid, mode=mode, align_corners=False)
    return sampled.transpose(0, 1).flatten(1, 2)


def _brightest(values: Tensor) -> float:
    """The 99.5th percentile."""
    values = values.flatten()
    return float(values.kthvalue(max(int(0.995 * values.numel()), 1)).values)


def _headroom(crop: Tensor, table: Tensor, anatomy: Anatomy, stripped: bool) -> float:
    """Ratio of the 99.5th percentiles of the whole head and of a crop; limited, should the crop be nearly empty."""
    box = (
        tuple(slice(*ends, 3) for ends in zip(*anatomy.brain_box, strict=True))
        if stripped
        else (slice(None, None, 3),) * 3
    )
    head = table[:, LEVELS // 2][anatomy.labels[box].int()]
    if stripped:
        head = head * (anatomy.brain_distance[box] < 128)
    return min(max(_brightest(head) / max(_brightest(crop[::2, ::2, ::2]), 1e-6), 0.5), 4.0)


def simulate(
    anatomy: Anatomy,
    *,
    shape: tuple[int, int, int] = (128, 128, 128),
    generator: Generator,
    device: torch.device | str = "cpu",
    sources: Sequence[str] = MODALITIES,
    targets: Sequence[str] = MODALITIES,
    random_contrast: float = 0.3,
    skull_strip: float = 0.6,
    pathology: float = 1.0,
    artefacts: float = 1.0,
    deform: float = 1.0,
) -> Simulation:
    """Simulate a head; the same state of `generator` (a CPU generator) gives the same images.

    shape: voxels of 1 mm. sources, targets: the modalities to compute. random_contrast: probability, per source, of a
    contrast that follows no physics. skull_strip: probability that everything outside the brain is zero, in all
    images of the case. pathology, artefacts, deform: factors on the probabilities of lesions (`PATHOLOGY`), on the
    artefacts of the sources and on the deformation of the anatomy.
    """
    device = torch.device(device)
    noise_generator = device_generator(generator, device)
    positions = sampling_positions(anatomy, shape, generator, device, deform=deform)
    flat = positions.reshape(-1, 3)
    low = (flat.amin(0).floor() - 2).clamp(min=0).long().cpu()
    high = torch.minimum(flat.amax(0).ceil().long().cpu() + 3, torch.tensor(anatomy.labels.shape))
    region = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    positions -= low.to(positions)

    labels = anatomy.labels[region].to(device, copy=True)
    case: dict = {"anatomy": anatomy.name, "pathology": []}
    texture = _texture(labels.shape, generator, noise_generator, device)
    texture.add_(anatomy.shade[region].to(device), alpha=uniform(generator, 0.6, 1.1) / SHADE_STEP)
    level = (texture * ((LEVELS - 1) / (2 * TEXTURE_RANGE)) + LEVELS / 2).clamp_(0, LEVELS - 1).byte()
    vessel = _vessels(labels.shape, generator, device) & (labels == CLASS["subarachnoid CSF"])
    labels.masked_fill_(vessel, CLASS["vessel"])
    if chance(generator, 0.5):  # hyperintensities of the label map itself, else healthy white matter
        labels.masked_fill_(labels == CLASS["lesion"], CLASS["white matter"])
    drawn = {kind: chance(generator, pathology * probability) for kind, probability in PATHOLOGY.items()}
    case["pathology"] = [kind for kind, present in drawn.items() if present]
    if drawn["lesions"]:
        white_matter_lesions(labels, level, anatomy.white_matter, anatomy.periventricular, low, generator)
    if drawn["infarct"]:
        infarct(labels, level, anatomy.white_matter, low, generator)
    mass = glioma(labels, level, anatomy.white_matter, low, generator) if drawn["glioma"] else None
    if mass is not None:
        positions = displace_mass(positions, *mass)

    subject = draw_subject(generator)
    tables, protocols = [], []
    for modality in targets:
        protocol = canonical_protocol(modality, generator)
        tables.append(contrast(modality, subject[protocol["field"]], protocol))
        protocols.append(protocol)
    for modality in sources:
        protocol = wide_protocol(modality, generator)
        table = contrast(modality, subject[protocol["field"]], protocol)
        if chance(generator, random_contrast):
            table = random_table(table, generator)
            protocol = {"sequence": "random"}
        tables.append(table)
        protocols.append(protocol)

    index = labels.int().mul_(LEVELS).add_(level).flatten()
    ideal = torch.stack([table.flatten().to(device)[index].view(labels.shape) for table in tables])
    ideal = _sample(ideal, positions)
    labels = _sample(labels[None].float(), positions, "nearest")[0].round().byte()
    distance = _sample(anatomy.brain_distance[region].to(device)[None].float() - 255, positions)[0] + 127
    edge = uniform(generator, -1, 3)
    rough = uniform(generator, 0, 0.8) * smooth_field(generator, shape, 6, device)
    brain = distance / DISTANCE_STEP + rough < edge
    stripped = chance(generator, skull_strip)
    case |= {"skull_stripped": stripped, "mask_edge": edge}

    blur = [gaussian_matrix(n, TARGET_BLUR, device) for n in shape]
    images, headroom = [], []
    for number, image in enumerate(ideal):
        headroom.append(_headroom(image * brain if stripped else image, tables[number], anatomy, stripped))
        if number < len(targets):
            result = apply_matrices(image, blur)
        else:
            result, artefact = acquire(image, generator, noise_generator, strength=artefacts)
            protocols[number] |= artefact
        images.append(result.mul_(brain) if stripped else result)
    case["targets"] = dict(zip(targets, protocols, strict=False))
    case["sources"] = dict(zip(sources, protocols[len(targets) :], strict=True))
    return Simulation(
        targets=dict(zip(targets, images, strict=False)),
        sources=dict(zip(sources, images[len(targets) :], strict=True)),
        labels=labels,
        lesion_mask=labels >= FIRST_LESION,
        brain_mask=brain,
        target_headroom=dict(zip(targets, headroom, strict=False)),
        source_headroom=dict(zip(sources, headroom[len(targets) :], strict=True)),
        protocol=case,
    )
