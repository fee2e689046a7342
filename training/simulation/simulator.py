"""Simulate the contrasts of one head: paired clean targets and realistically acquired sources.

The signal of a voxel is the mixture of its tissues' signals. All contrasts are linear in the tissue fractions, so the
signals are computed once per class and texture level (a few hundred numbers), looked up in the anatomy, and the
*images* are interpolated and blurred: this mixes signals, not parameters, and equals blurring fuzzy tissue maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import embedding_bag, grid_sample, pad

from training.simulation.anatomy import DISTANCE_STEP, SHADE_STEP, Anatomy
from training.simulation.artefacts import acquire, interpolation_matrix, power
from training.simulation.deformation import displace_mass, rigid_motion, rotation_matrix, sampling_positions
from training.simulation.pathology import paint_pathology
from training.simulation.protocols import canonical_protocol, contrast, random_table, wide_protocol
from training.simulation.randomness import (
    apply_matrices,
    chance,
    device_generator,
    slight_blur,
    smooth_field,
    smooth_sum,
    uniform,
)
from training.simulation.tissues import CLASS, FIRST_LESION, LEVELS, TEXTURE_RANGE, TISSUES, draw_subject

MODALITIES = ("T1", "T1ce", "T2", "FLAIR", "PD")
TARGET_BLUR = 0.36  # mm, SD of the clean targets' point spread beyond the voxel
BRIGHT = 0.995  # the percentile by which images are scaled
MARGIN = 2  # voxels of air around the part of the anatomy that is sampled
SAME_SESSION = 0.9  # chance that T1ce, as a target, is the source T1 repeated after the contrast agent
STRIPPED_BEFORE = 0.5  # chance that the skull was stripped before thick slices were resampled, which blurs the edge
SHIFT, TURN = 0.8, 1.0  # mm and degrees, the largest misregistration of a source


@dataclass(frozen=True)
class Simulation:
    """Images of one simulated head, all (X, Y, Z) at 1 mm, axes R, A, S.

    targets, sources: modality -> float32 image, non-negative arbitrary units; targets are clean and follow the
    canonical protocol (T1ce: or that of the source T1 with its gamma, if protocol["same_session"]), sources are
    acquired with protocols from wide ranges and with artefacts, some of them displaced by what registration leaves
    over. labels: uint8 tissue classes (`tissues.TISSUES`). lesion_mask, brain_mask: bool; outside the brain mask images
    are zero if protocol["skull_stripped"], but for the blurred edge of thick slices if protocol["soft_edges"].
    target_headroom, source_headroom: how much brighter the whole head is than the
    crop (ratio of their 99.5th percentiles, without artefacts): intensities are scaled by whole heads when the networks
    are used, and a crop without fluid says nothing about how bright fluid is. Of targets it is the healthy head: in
    FLAIR, tissue keeps its level when there is oedema. protocol: what was drawn.
    """

    targets: dict[str, Tensor]
    sources: dict[str, Tensor]
    labels: Tensor
    lesion_mask: Tensor
    brain_mask: Tensor
    target_headroom: dict[str, float]
    source_headroom: dict[str, float]
    protocol: dict


def texture_field(
    shape: Sequence[int], generator: Generator, noise_generator: Generator, device: torch.device
) -> Tensor:
    """A field of about unit variance: fine grain and smooth variation over a centimetre or so."""
    grain, share = uniform(generator, 1.5, 2.5), uniform(generator, 0.5, 0.75)
    terms = [(share, grain), (math.sqrt(1 - share**2), uniform(generator, 6, 16))]
    return smooth_sum(noise_generator, shape, terms, device)


def texture_levels(texture: Tensor) -> Tensor:
    """A texture in standard deviations, which is overwritten, as levels of the signal tables: uint8."""
    return texture.mul_((LEVELS - 1) / (2 * TEXTURE_RANGE)).add_(LEVELS / 2).clamp_(0, LEVELS - 1).byte()


def _vessels(shape: Sequence[int], generator: Generator, device: torch.device) -> Tensor:
    """Tubes: where two smooth fields cross zero together."""
    first, second = (smooth_field(generator, shape, 7, device).square_() for _ in range(2))
    return first.add_(second) < uniform(generator, 0.03, 0.16)


def _region(positions: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Lowest index and size of the part of the anatomy that `positions` lie in.

    The deformation folds nowhere, so the outermost positions are on the faces of the volume.
    """
    faces = torch.cat([positions.movedim(k, 0)[[0, -1]].reshape(-1, 3) for k in range(3)])
    low = (faces.amin(0).floor() - 2).clamp(min=0).long().cpu()
    high = torch.minimum(faces.amax(0).ceil().long().cpu() + 3, torch.tensor(shape))
    return low, high


def sample_signals(index: Tensor, tables: Tensor, positions: Tensor) -> Tensor:
    """Look the signals of the voxels up and interpolate them linearly at positions, for all contrasts at once.

    The images of the whole anatomy are never formed: the eight neighbours' rows of the table are averaged.

    index: int16 (I, J, K), rows of the table. tables: (rows, C). positions: (X, Y, Z, 3) in voxels, at least 0 and
    below the last voxel of each axis. Returns (C, X, Y, Z).
    """
    _, rows, columns = index.shape
    strides = torch.tensor([rows * columns, columns, 1], dtype=torch.int32, device=index.device)
    corners = torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], device=index.device)
    steps = (corners * strides).sum(1, dtype=torch.int32)
    index = index.flatten()
    shape = positions.shape[:3]
    images = torch.empty(tables.shape[1], *shape, device=index.device)
    slab = 4 if index.device.type == "cpu" else shape[0]  # small enough for the cache of a CPU
    for start in range(0, shape[0], slab):
        base, part, weights = 0, positions[start : start + slab], 1.0
        for axis in range(3):
            floor = part[..., axis].floor()
            fraction = (part[..., axis] - floor).flatten()
            base = base + floor.int().flatten() * strides[axis]
            both = torch.stack([1 - fraction, fraction])
            weights = weights * both.view(*(2 if k == axis else 1 for k in range(3)), -1)
        neighbours = index.index_select(0, (base[:, None] + steps).flatten()).int().view(-1, 8)
        signal = embedding_bag(neighbours, tables, per_sample_weights=weights.flatten(0, 2).T.contiguous(), mode="sum")
        images[:, start : start + slab] = signal.T.unflatten(1, (-1, *shape[1:]))
    return images


def sample_nearest(labels: Tensor, positions: Tensor) -> Tensor:
    """Values of the voxels (I, J, K) nearest to positions (X, Y, Z, 3) inside."""
    _, rows, columns = labels.shape
    nearest = [positions[..., axis].round().int() for axis in range(3)]
    flat = (nearest[0] * rows + nearest[1]) * columns + nearest[2]
    return labels.flatten().index_select(0, flat.flatten()).view(flat.shape)


def _sample_coarse(volume: Tensor, positions: Tensor) -> Tensor:
    """Linear interpolation of a smooth volume (I, J, K) at every second position of each axis, and between these."""
    size = torch.tensor(volume.shape, device=positions.device)
    grid = ((2 * positions[::2, ::2, ::2] + 1) / size - 1).flip(-1)
    half = grid_sample(volume[None, None], grid[None], align_corners=False)[0, 0]
    back = [
        interpolation_matrix(n, m, 2, -0.5).to(volume) for n, m in zip(positions.shape[:3], half.shape, strict=True)
    ]
    return apply_matrices(half, back)


def _brightest(values: Tensor) -> float:
    """The 99.5th percentile."""
    values = values.flatten()
    return float(values.kthvalue(max(int(BRIGHT * values.numel()), 1)).values)


def _brightest_signal(counts: Tensor, table: Tensor) -> float:
    """The 99.5th percentile of an image that has `counts[c]` voxels of class c, their texture of unit variance.

    The texture counts: most of a head is air, and the percentile lies among the brightest voxels of a tissue.
    """
    texture = torch.linspace(-TEXTURE_RANGE, TEXTURE_RANGE, LEVELS, dtype=torch.double)
    share = torch.exp(-(texture**2) / 2)
    voxels, signals = torch.outer(counts, share / share.sum()).flatten(), table.flatten()
    order = signals.argsort()
    below = voxels[order].cumsum(0)
    return float(signals[order[torch.searchsorted(below, BRIGHT * below[-1])]])


def _count_classes(anatomy: Anatomy, stripped: bool, crop: Tensor) -> Tensor:
    """Voxels of each class in the whole head, or in the box around the brain with all else as air.

    The pathology is that of the crop (labels of any shape): what was simulated lies within it.
    """
    step = 3
    if stripped:
        box = tuple(slice(*ends, step) for ends in zip(*anatomy.brain_box, strict=True))
        labels = anatomy.labels[box] * (anatomy.brain_distance[box] < 128)
    else:
        labels = anatomy.labels[::step, ::step, ::step]
    counts, here = (each.flatten().bincount(minlength=len(TISSUES)).double() for each in (labels, crop.cpu()))
    counts *= step**3
    counts[FIRST_LESION:] = here[FIRST_LESION:]
    return counts


def _misregister(image: Tensor, generator: Generator, strength: float) -> tuple[Tensor, dict]:
    """Move the head as it lay when this contrast was acquired: what registration leaves over.

    In half of the draws: a shift of less than 0.8 mm in any direction, and a turn of up to a degree about the centre.
    """
    distance, turns = torch.rand(1, generator=generator) * SHIFT, 2 * torch.rand(3, generator=generator) - 1
    direction = torch.randn(3, generator=generator)
    axis_of_turn = turns / turns.norm().clamp(min=1)
    if not chance(generator, 0.5) or strength == 0:
        return image, {}
    shift = strength * distance * direction / direction.norm()
    degrees = strength * TURN * axis_of_turn
    moved = rigid_motion(image, rotation_matrix(degrees.tolist()), shift)
    return moved, {"shift": shift.tolist(), "turn": degrees.tolist()}


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
    misregistration: float = 1.0,
) -> Simulation:
    """Simulate a head; the same state of `generator` (a CPU generator) gives the same images.

    shape: voxels of 1 mm. sources, targets: the modalities to compute. random_contrast: probability, per source, of a
    contrast that follows no physics. skull_strip: probability that everything outside the brain is zero, in all
    images of the case. pathology, artefacts, deform: factors on the probabilities of lesions
    (`pathology.PATHOLOGY`), on the artefacts of the sources and on the deformation of the anatomy. misregistration:
    factor on the rigid motion of each source against the label map (0: none); targets are never moved.
    """
    device = torch.device(device)
    noise_generator = device_generator(generator, device)
    positions = sampling_positions(anatomy, shape, generator, device, deform=deform)
    low, high = _region(positions, anatomy.labels.shape)
    region = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    low -= MARGIN

    labels = pad(anatomy.labels[region].to(device), (MARGIN,) * 6)
    case: dict = {"anatomy": anatomy.name, "pathology": []}
    texture = texture_field(labels.shape, generator, noise_generator, device)
    inner = (slice(MARGIN, -MARGIN),) * 3
    texture[inner].add_(anatomy.shade[region].to(device), alpha=uniform(generator, 0.6, 1.1) / SHADE_STEP)
    level = texture_levels(texture)
    vessel = _vessels(labels.shape, generator, device) & (labels == CLASS["subarachnoid CSF"])
    labels.masked_fill_(vessel, CLASS["vessel"])
    if chance(generator, 0.5):  # hyperintensities of the label map itself, else healthy white matter
        labels.masked_fill_(labels == CLASS["lesion"], CLASS["white matter"])
    case["pathology"], mass = paint_pathology(labels, level, anatomy, low, generator, pathology)
    positions -= low.to(positions)
    if mass is not None:
        positions = displace_mass(positions, *mass)
    for axis, size in enumerate(labels.shape):
        positions[..., axis].clamp_(0, size - 1.001)

    subject = draw_subject(generator)
    acquired_tables, acquired_protocols = [], []
    for modality in sources:
        protocol = wide_protocol(modality, generator)
        table = contrast(modality, subject[protocol["field"]], protocol)
        if chance(generator, random_contrast):
            table = random_table(table, generator)
            protocol = {"sequence": "random"}
        acquired_tables.append(table)
        acquired_protocols.append(protocol)
    tables, protocols = [], []
    before = dict(zip(sources, acquired_protocols, strict=True)).get("T1", {"sequence": "random"})
    case["same_session"] = before["sequence"] != "random" and chance(generator, SAME_SESSION)
    for modality in targets:
        protocol = canonical_protocol(modality, generator)
        if modality == "T1ce" and case["same_session"]:
            protocol = before | {"dose": protocol["dose"]}
        tables.append(contrast(modality, subject[protocol["field"]], protocol))
        protocols.append(protocol)
    tables += acquired_tables
    protocols += acquired_protocols

    index = labels.short().mul_(LEVELS).add_(level)
    ideal = sample_signals(index, torch.stack([table.flatten() for table in tables], 1).to(device), positions)
    labels = sample_nearest(labels, positions)
    distance = pad(anatomy.brain_distance[region].to(device), (MARGIN,) * 6, value=255).float().sub_(128)
    distance = _sample_coarse(distance, positions)
    edge = uniform(generator, -1.5, 2.5)
    rough = uniform(generator, 0, 0.8) * smooth_field(generator, shape, 6, device)
    brain = distance / DISTANCE_STEP + rough < edge
    stripped = chance(generator, skull_strip)
    soft = stripped and chance(generator, STRIPPED_BEFORE)
    case |= {"skull_stripped": stripped, "mask_edge": edge, "soft_edges": soft}

    counts = _count_classes(anatomy, stripped, labels)
    healthy = counts.clone()
    healthy[FIRST_LESION:] = 0
    images, headroom = [], []
    for number, (image, table) in enumerate(zip(ideal, tables, strict=True)):
        bright = _brightest((image[::2, ::2, ::2] * brain[::2, ::2, ::2]) if stripped else image[::2, ::2, ::2])
        whole = _brightest_signal(healthy if number < len(targets) else counts, table)
        headroom.append(min(max(whole / max(bright, 1e-6), 0.5), 4.0))  # limited, should the crop be nearly empty
        if number < len(targets):
            result, cut = slight_blur(image, TARGET_BLUR), stripped
        else:
            moved, motion = _misregister(image, generator, misregistration)
            mask, cut = (brain, False) if soft else (None, stripped)
            result, artefact = acquire(moved, generator, noise_generator, strength=artefacts, brain_mask=mask)
            protocols[number] |= motion | artefact
        images.append(result.mul_(brain) if cut else result)
    if case["same_session"] and "T1ce" in targets:
        gamma = protocols[len(targets) + list(sources).index("T1")].get("gamma", 1.0)
        place = list(targets).index("T1ce")
        images[place] = power(images[place], gamma, peak=1.0)
        headroom[place] **= gamma
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
