"""A classifier of contrasts, trained on simulated sources: it tells where a scan is not what it is said to be.

Whole heads are simulated at 2 mm and scaled as the engine does it, then kept at 4 mm; there, what is cheap to change is
drawn several times, described once, and learned from again and again. The simulator's artefacts are in voxels, so
slices are up to 14 mm thick and noise is as strong as in voxels of 8 mm^3: more than the translators see, as the answer
should outlive it. Beside the classifier, the ranges of what it was trained on are measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from MissingModalitySynthLib.input_range import QUANTILES, head_quantiles
from MissingModalitySynthLib.intensity import intensity_range, scale
from MissingModalitySynthLib.networks.classifier import ContrastClassifier, coarse, describe

from .batches import GAIN_JITTER, choose
from .loop import generator_at
from .simulation.anatomy import Anatomy
from .simulation.randomness import chance, smooth_field, uniform
from .simulation.simulator import simulate
from .simulation.tissues import CLASS, TISSUES

# The ranges that training/simulation/artefacts.py draws from: slices of up to 7 mm; in the other directions a blur of
# up to 0.75 mm (SD), about the resolution of voxels of 2 mm.
SLICE_MM, PIXEL_MM = 7.0, 2.0
SIMULATED_MM = 2
LARGEST = (96, 120, 112)  # voxels of 2 mm that are simulated of a head, with some of the neck
MARGIN = (2, 9)  # voxels of 2 mm of air around the head, as the engine leaves them
STRIPPED = 0.6
VIEWS, HEADS = 4, 16  # views of each simulated head, and those that are learned from at once
CUT = 0.3  # chance of a field of view that ends within the head
SMOOTHING = 0.02  # of the labels: probabilities stay honest

# Hounsfield units, for images that are none of the contrasts: all other tissue is soft
CT_VALUES = {"air": -1000, "cortical bone": 1200, "marrow": 400, "fat": -90, "ventricular CSF": 8}
CT_VALUES |= {"subarachnoid CSF": 12, "white matter": 28, "cortex": 38, "mucosa": -300}


@dataclass(frozen=True)
class Views:
    """What is known of images at 4 mm: their descriptions (B, FEATURES), the indices of their classes (B,), the
    QUANTILES of their intensities in the head (B, Q), and the extents of their heads along R, A and S in mm (N, 3)."""

    features: Tensor
    classes: Tensor
    quantiles: Tensor
    extents: Tensor

    def __str__(self) -> str:
        return f"views of {len(self.extents)} simulated heads"


class TrainedClassifier(nn.Module):
    """The classifier, and the ranges of what it has seen, from the lowest to the highest.

    Attributes:
        quantiles: (classes, QUANTILES, 2), of the intensities in the head; extents: (3, 2), of the head in mm.
    """

    def __init__(self, classes: Sequence[str], width: int) -> None:
        super().__init__()
        self.network = ContrastClassifier(classes, width)
        self.register_buffer("quantiles", torch.zeros(len(classes), len(QUANTILES), 2))
        self.register_buffer("extents", torch.zeros(3, 2))

    def measure(self, examples: Sequence[Views]) -> None:
        """Set the ranges to those of the examples."""
        for index in range(len(self.quantiles)):
            self.quantiles[index] = _range(torch.cat([each.quantiles[each.classes == index] for each in examples]))
        self.extents.copy_(_range(torch.cat([each.extents for each in examples])))


def _range(values: Tensor) -> Tensor:
    """(N, K) to the lowest and the highest of each column, (K, 2)."""
    return torch.stack([values.amin(0), values.amax(0)], dim=1)


def classifier_losses(model: TrainedClassifier, views: Views, generator: torch.Generator) -> dict[str, Tensor]:
    """Cross-entropy with smoothed labels; "error" is the share of wrong answers, T1 with and without agent as one."""
    logits = model.network.decide(views.features).float()
    classes = model.network.classes
    same = torch.tensor([classes.index("T1") if name == "T1ce" and "T1" in classes else n
                         for n, name in enumerate((*classes, ""))])  # fmt: skip
    wrong = same.to(logits.device)[logits.argmax(1)] != same.to(logits.device)[views.classes]
    return {
        "cross_entropy": F.cross_entropy(logits, views.classes, label_smoothing=SMOOTHING),
        "error": wrong.float().mean(),
    }


def contrast_views(
    anatomies: Callable[[], Sequence[Anatomy]],
    seed: int,
    *,
    modalities: Sequence[str],
    cases: int,
    folder: Path,
    device: str = "cpu",
) -> Callable[[int], Views]:
    """Training examples by number: views of HEADS heads, out of VIEWS views of each of ``cases`` heads.

    Args:
        anatomies: asked for only where a head is not in ``folder`` yet, which keeps them for a run that goes on.
    """

    @lru_cache(maxsize=cases)
    def head(case: int) -> dict[str, Tensor]:
        path = folder / f"head-{case:04d}.safetensors"
        if not path.exists():
            known = anatomies()
            made = simulate_coarse(known[case % len(known)], generator_at(seed, case), modalities, device=device)
            folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.cpu() for name, tensor in made.items()}, unfinished := path.with_suffix(".partial"))
            os.replace(unfinished, path)
        return {name: tensor.to(device) for name, tensor in load_file(path).items()}

    @lru_cache(maxsize=VIEWS * cases)
    def view(number: int) -> Views:
        generator = generator_at(seed, number, 3)
        kind, known = "brain" if chance(generator, STRIPPED) else "whole", head(number % cases)
        images = draw_views(known[kind].float(), generator, stripped=kind == "brain")
        return Views(
            describe(images),
            torch.arange(len(images), device=device),
            torch.tensor([head_quantiles(image.cpu()) for image in images], device=device),
            known[f"{kind} extent"][None],
        )

    def example(number: int) -> Views:
        chosen = torch.randint(VIEWS * cases, (HEADS,), generator=generator_at(seed, number, 4))
        views = [view(each) for each in chosen.tolist()]
        return Views(*(torch.cat([getattr(each, field.name) for each in views]) for field in fields(Views)))

    return example


def simulate_coarse(
    anatomy: Anatomy, generator: torch.Generator, modalities: Sequence[str], *, device: str = "cpu"
) -> dict[str, Tensor]:
    """Sources of one head at 4 mm, scaled by the engine's percentiles, "whole" and of the "brain" alone.

    Returns:
        Images (contrasts + 1, 1, x, y, z), the last a CT; and "whole extent" and "brain extent" along R, A and S in mm.
    """
    anatomy = halved(anatomy)
    shape = tuple(min(a, b) for a, b in zip(anatomy.labels.shape, LARGEST, strict=True))
    case = simulate(
        anatomy, shape=shape, generator=generator, sources=modalities, targets=(), random_contrast=0.0,
        skull_strip=0.0, device=device,
    )  # fmt: skip
    soft = uniform(generator, 30, 60)
    units = torch.tensor([CT_VALUES.get(tissue.name, soft) for tissue in TISSUES], device=case.labels.device)
    computed = units.float()[case.labels.long()]
    computed += uniform(generator, 2, 15) * torch.randn(shape, generator=generator).to(computed)
    low, high = (-1000, 1500) if chance(generator, 0.5) else (uniform(generator, -60, 0), uniform(generator, 70, 300))
    images = [case.sources[name] for name in modalities] + [computed.clamp(low, high) - low]
    made = {}
    for kind, mask in (("whole", case.labels != CLASS["air"]), ("brain", case.brain_mask)):
        margin = int(uniform(generator, *MARGIN))
        box = [_span(mask, axis) for axis in range(3)]
        pads = [size for low, high in reversed(box) for size in (margin, margin)]
        region = tuple(slice(low, high) for low, high in box)
        shown = [image * mask for image in images] if kind == "brain" else images
        made[kind] = torch.cat([_as_networks_see(F.pad(image[region], pads)) for image in shown]).half()
        made[f"{kind} extent"] = torch.tensor([float(SIMULATED_MM * (high - low)) for low, high in box])
    return made


def halved(anatomy: Anatomy) -> Anatomy:
    """Every second voxel along each axis: at 4 mm they say the same, on average, and cost an eighth."""
    every = (slice(None, None, 2),) * 3
    seeds = ("white_matter", "periventricular", "juxtacortical")
    return replace(
        anatomy,
        **{name: getattr(anatomy, name)[every].contiguous() for name in ("labels", "brain_distance", "shade")},
        **{name: getattr(anatomy, name) // 2 for name in seeds},
        brain_box=tuple(tuple(index // 2 for index in corner) for corner in anatomy.brain_box),
    )


def _span(mask: Tensor, axis: int) -> tuple[int, int]:
    occupied = mask.movedim(axis, 0).flatten(1).any(1).nonzero()
    return int(occupied[0]), int(occupied[-1]) + 1


def _as_networks_see(image: Tensor) -> Tensor:
    """(X, Y, Z) at 2 mm to (1, 1, x, y, z) at 4 mm, scaled before."""
    array = image.cpu().numpy()
    scaled = torch.from_numpy(scale(array, intensity_range(array)))
    return coarse(scaled[None, None], (SIMULATED_MM,) * 3).to(image.device)


def draw_views(images: Tensor, generator: torch.Generator, *, stripped: bool) -> Tensor:
    """What can be drawn anew of the images (contrasts + 1, 1, x, y, z): place, gain, gamma, noise, and an outlier."""
    if stripped or chance(generator, 0.6):  # a CT of the brain alone is not far from a FLAIR
        images = torch.cat([images[:-1], outlier(images.shape[2:], images[:1], generator).to(images)])
    if chance(generator, CUT):
        for axis in range(2, 5):
            size = images.shape[axis]
            low, high = uniform(generator, 0, 0.3), uniform(generator, 0.7, 1)
            images = images.narrow(axis, int(low * size), max(int(high * size) - int(low * size), 1))
    images = images.flip([axis for axis in range(2, 5) if chance(generator, 0.5)])
    noise = torch.randn(images.shape, generator=generator).to(images)
    drawn = []
    for image, grain in zip(images, noise, strict=True):
        gamma = math.exp(uniform(generator, -0.3, 0.3)) if chance(generator, 0.5) else 1.0
        gain = uniform(generator, 1 - GAIN_JITTER, 1 + GAIN_JITTER)
        drawn.append(gain * ((image + 1) / 2).clamp(min=0) ** gamma + uniform(generator, 0, 0.02) * grain)
    return (2 * torch.stack(drawn) - 1).clamp(-1, 1)


def outlier(shape: Sequence[int], head: Tensor, generator: torch.Generator) -> Tensor:
    """An image (1, 1, x, y, z) in [-1, 1] of no head, or of a head without contrast: noise, a phantom, a flat head."""
    noise = torch.randn(tuple(shape), generator=generator)
    if chance(generator, 0.5):
        noise = smooth_field(generator, shape, uniform(generator, 1.5, 8), "cpu")
    inside = (head[0, 0] > -0.9).cpu()
    kind = choose(generator, 3)
    if kind == 0:  # noise everywhere, or in the head
        image = uniform(generator, 0.2, 0.8) + uniform(generator, 0.1, 0.5) * noise
        if chance(generator, 0.5):
            image *= inside
    elif kind == 1:  # bodies of one signal each
        axes = [torch.linspace(-1, 1, size) for size in shape]
        image = torch.zeros(tuple(shape))
        for _ in range(1 + choose(generator, 8)):
            centre, radii = torch.rand(3, generator=generator) - 0.5, 0.1 + 0.8 * torch.rand(3, generator=generator)
            squares = [((axis - c) / r).abs() for axis, c, r in zip(axes, centre, radii, strict=True)]
            order = 2 if chance(generator, 0.6) else 20  # round or a box
            x, y, z = (part**order for part in squares)
            image[x[:, None, None] + y[:, None] + z < 1] = uniform(generator, 0, 1)
        image += uniform(generator, 0, 0.03) * noise
    else:
        image = inside * (uniform(generator, 0.4, 0.95) + uniform(generator, 0, 0.03) * noise)
    return (2 * image - 1).clamp(-1, 1)[None, None]


def ranges(weights: dict[str, Tensor], classes: Sequence[str]) -> dict:
    """What a package says of what its networks were trained on, from the weights of :class:`TrainedClassifier`."""
    quantiles = [[[round(end, 3) for end in pair] for pair in each] for each in weights["quantiles"].tolist()]
    return {
        "slice_mm": SLICE_MM,
        "pixel_mm": PIXEL_MM,
        "extent_mm": weights["extents"].tolist(),
        "quantiles": dict(zip(classes, quantiles, strict=True)),
    }
