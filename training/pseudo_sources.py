"""What stands in for a source contrast that nobody has seen: images made of the target, and of its tissues."""

from __future__ import annotations

import torch

from MissingModalitySynthLib.segmentation import CLASSES

from .simulation.artefacts import acquire
from .simulation.randomness import apply_matrices, chance, device_generator, gaussian_matrix, smooth_field, uniform
from .simulation.tissues import TISSUES
from .tissue_classes import classes_of

KNOTS = 7  # of a map of intensities
DARKEST = 0.05  # of mapped tissue, background being 0: a source shows its head
TISSUE_SHARE = 0.8  # of the pseudo-sources of heads whose tissues are known
KIND_SPREAD = 0.2  # of the intensities of tissues of one kind
BRIGHTEST = (0.75, 1.0)  # tissue of the brain
FLAT_SHARE, FLAT_SPAN = 0.4, (0.12, 0.6)  # of contrasts as weak as that of proton density, and of what they span
ALIKE_SHARE, ALIKE = 0.35, 0.3  # of contrasts in which grey and white matter are alike, and how far apart at most
PARTIAL_VOLUME = 0.6  # SD in voxels of the blur of labels' edges


def pseudo_source(
    image: torch.Tensor,
    generator: torch.Generator,
    artefacts: float = 0.6,
    labels: torch.Tensor | None = None,
    monotone_share: float = 0.2,
) -> torch.Tensor:
    """The target (1, 1, X, Y, Z) in [-1, 1] as another contrast might show the head; exact background stays so.

    In ``monotone_share`` of the draws its intensities are mapped by a rising or falling map. Else, where tissues are
    known, :func:`tissue_contrast` makes the image in TISSUE_SHARE of the draws; or the map is any
    :func:`intensity_map`, in half of the draws two that take turns in space, as other contrasts tell apart what is
    alike in the target. Then comes what an acquisition does to an image.

    Args:
        artefacts: factor on those of :func:`~.simulation.artefacts.acquire`.
        labels: tissue classes of the simulator, like the image; None for scans.
        monotone_share: with 1 a network learns in a thousand steps to tell by the anatomy whether a contrast is
            inverted; begun with any contrasts, it learned nothing but a blur in four thousand.
    """
    signal = (image[0, 0] + 1) / 2
    if chance(generator, monotone_share):
        mapped = _interpolate(intensity_map(generator, monotone=True), signal)
    elif labels is not None and chance(generator, TISSUE_SHARE):
        mapped = tissue_contrast(labels[0, 0], signal, generator)
    else:
        mapped = _interpolate(intensity_map(generator), signal)
        if chance(generator, 0.5):
            field = smooth_field(generator, signal.shape, uniform(generator, 16, 40), signal.device)
            mapped = mapped.lerp(_interpolate(intensity_map(generator), signal), torch.sigmoid(4 * field))
    mapped *= signal > 0
    acquired, _ = acquire(mapped, generator, device_generator(generator, image.device), strength=artefacts)
    return (2 * acquired * (signal > 0) - 1).clamp(max=1)[None, None]


def tissue_contrast(labels: torch.Tensor, signal: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An image (X, Y, Z), DARKEST to 1, in which each tissue has an intensity of its own that follows no physics.

    As SynthSR makes its inputs (Iglesias et al. 2021), but that tissues of one kind are near each other, and deep grey
    matter is mostly between grey and white matter, as in every contrast; that some contrasts are flat, with all tissues
    near the brightest, and some have grey and white matter almost alike, as FLAIR; and that what a tissue shows within
    itself is that of the target, stronger or weaker, in either direction.

    Args:
        labels: tissue classes of the simulator.
        signal: the target in [0, 1].
    """
    kinds = classes_of(torch.arange(len(TISSUES)))
    own, kind = torch.rand(len(TISSUES), generator=generator), torch.rand(len(CLASSES), generator=generator)
    grey, white, deep = (CLASSES.index(name) for name in ("grey matter", "white matter", "deep grey matter"))
    draw, span, spread = uniform(generator, 0, 1), 1.0, KIND_SPREAD
    if draw < FLAT_SHARE:
        span = uniform(generator, *FLAT_SPAN)
    elif draw < FLAT_SHARE + ALIKE_SHARE:
        kind[white] = (kind[grey] + uniform(generator, -ALIKE, ALIKE)).clamp(0, 1)
        spread /= 2
    kind[deep] = kind[grey].lerp(kind[white], uniform(generator, -0.2, 1.2))
    values = torch.where(kinds > 0, 1 + span * (kind[kinds] + spread * (own - 0.5) - 1), own)
    brain = (kinds > 0) & (kinds < len(CLASSES) - 1)  # which decides how a whole head is scaled, whatever the crop
    values = values * uniform(generator, *BRIGHTEST) / values[brain].max()
    flat = labels.flatten().long()
    counts = torch.bincount(flat, minlength=len(TISSUES)).clamp_min(1)
    means = torch.bincount(flat, signal.flatten(), minlength=len(TISSUES)) / counts
    detail = span * uniform(generator, -1, 1) * (signal - means.to(signal)[labels.long()])
    edges = [gaussian_matrix(size, PARTIAL_VOLUME, signal.device) for size in signal.shape]
    return (apply_matrices(values.to(signal)[labels.long()], edges) + detail).clamp(DARKEST, 1)


def intensity_map(generator: torch.Generator, *, monotone: bool = False) -> torch.Tensor:
    """Values of a random continuous map of [0, 1] at KNOTS even places, from DARKEST to 1.

    A quarter rises, a quarter falls, as proton density against T1; half does neither, as FLAIR against T1. With
    ``monotone`` half rises and half falls.
    """
    values = torch.rand(KNOTS, generator=generator)
    kind = uniform(generator, 0, 0.5 if monotone else 1)
    if kind < 0.5:
        values = (values + 0.1).cumsum(0)
    if kind < 0.25:
        values = values.flip(0)
    values = (values - values.min()) / (values.max() - values.min())
    return DARKEST + (1 - DARKEST) * values


def _interpolate(values: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """The map at each intensity of the signal, linear between its knots."""
    values = values.to(signal.device)
    position = signal.clamp(0, 1) * (len(values) - 1)
    lower = position.floor().clamp(max=len(values) - 2).long()
    return values[lower].lerp(values[lower + 1], position - lower)
