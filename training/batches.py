"""Training pairs: some sources of a head and one target of it, as the networks see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

from MissingModalitySynthLib.intensity import BRIGHTEST, DARKEST, IntensityRange, intensity_range, scale
from MissingModalitySynthLib.modality import MODALITIES

from .loop import generator_at
from .simulation.anatomy import Anatomy
from .simulation.randomness import chance, uniform
from .simulation.simulator import Simulation, simulate

# Chances of one, two, three sources: the hardest case is the commonest in use.
SOURCE_COUNTS = (0.65, 0.25, 0.10)
GAIN_JITTER = 0.12
BLACK_CHANCE, BLACK_LEVEL = 0.3, 0.25
LIFT_CHANCE, LIFT = 0.4, (0.4, 1.0)  # exponents
ZERO_AIR_CHANCE = 0.3  # that the air around a whole head was set to zero, as in defaced scans and templates
KEPT_CASES = 8  # at most so many heads of a small data set are kept in memory


@dataclass(frozen=True)
class Pair:
    """One training example: sources by modality in [-1, 1], and the image of the target in [-1, BRIGHTEST], or [-1, 1]
    where there is no source; each (1, 1, X, Y, Z). In sources -1 is background that was set to zero, none in the head.

    Attributes:
        subject: who is in the images, for messages.
        labels: tissue classes of the simulator, uint8 (1, 1, X, Y, Z); None for scans.
        images: the same head in every contrast that is known, the target's among them; None: the target alone.
        lesions: bool (1, 1, X, Y, Z), where they are known.
    """

    sources: dict[str, Tensor]
    target: str
    image: Tensor
    subject: str = "an unnamed subject"
    labels: Tensor | None = None
    images: dict[str, Tensor] | None = None
    lesions: Tensor | None = None

    def __str__(self) -> str:
        return f"{' + '.join(self.sources)} -> {self.target} of {self.subject}"


def by_number(
    stream: Callable[[torch.Generator], Iterator[Pair]], seed: int, pairs_per_case: int, cases: int | None = None
) -> Callable[[int], Pair]:
    """A stream of pairs as a function of the pair's number: each case has a generator of its own.

    Pair 1000 of a run is then the same whether the run began at 0 or was resumed at 999. With ``cases`` the first
    so many come again and again.
    """

    @lru_cache(maxsize=min(cases or 1, KEPT_CASES))
    def case(number: int) -> list[Pair]:
        return list(islice(stream(generator_at(seed, number)), pairs_per_case))

    def pair(number: int) -> Pair:
        position = number // pairs_per_case
        return case(position % cases if cases else position)[number % pairs_per_case]

    return pair


def choose(generator: torch.Generator, count: int) -> int:
    """A uniformly drawn index below ``count``."""
    return int(torch.randint(count, (1,), generator=generator))


def draw_roles(
    generator: torch.Generator,
    modalities: Sequence[str] = MODALITIES,
    source_weights: Mapping[str, float] | None = None,
) -> tuple[list[str], str]:
    """A random non-empty set of sources, and a target that is not among them.

    Targets are drawn evenly; each next source by its weight among those that are left, evenly where there are none.
    """
    target = modalities[choose(generator, len(modalities))]
    others = [name for name in modalities if name != target]
    count = min(1 + int(torch.multinomial(torch.tensor(SOURCE_COUNTS), 1, generator=generator)), len(others))
    weights = torch.tensor([1.0 if source_weights is None else source_weights[name] for name in others])
    drawn = torch.multinomial(weights, count, generator=generator).tolist()
    return [others[index] for index in drawn], target


def scaled(image: Tensor, headroom: float = 1.0, brightest: float = 1.0) -> Tensor:
    """A simulated crop (X, Y, Z), air 0, to (1, 1, X, Y, Z) in [-1, brightest], as the engine scales whole heads.

    Its lower percentile is air, of which a crop inside the brain has none; ``headroom`` is how much brighter the whole
    head is than this crop of it.
    """
    array = image.cpu().numpy()
    whole = IntensityRange(0.0, headroom * intensity_range(array).high)
    return torch.from_numpy(scale(array, whole, brightest))[None, None].to(image.device)


def outlined(image: Tensor, head: Tensor) -> Tensor:
    """An image (1, 1, X, Y, Z) with -1 outside the head, bool (X, Y, Z), and at least DARKEST inside."""
    return torch.where(head, image.clamp(min=DARKEST), -1.0)


@dataclass(frozen=True)
class DarkEnd:
    """What becomes of the dark end of an intensity range: up to a quarter of the range cut off, or lifted, or neither.

    In some T1s fluid is as dark as the air around a stripped brain, in others nearly as bright as grey matter: the
    networks must tell fluid by where it is.
    """

    level: float = 0.0  # what is cut off, of a range of 2
    exponent: float = 1.0

    @classmethod
    def draw(cls, generator: torch.Generator) -> DarkEnd:
        """Cut off in three of ten draws, lifted in four."""
        draw = uniform(generator, 0, 1)
        if draw < BLACK_CHANCE:
            return cls(level=2 * uniform(generator, 0, BLACK_LEVEL))
        if draw < BLACK_CHANCE + LIFT_CHANCE:
            return cls(exponent=uniform(generator, *LIFT))
        return cls()

    def __call__(self, image: Tensor) -> Tensor:
        """An image of -1 or more with another dark end; -1 and 1 stay."""
        signal = ((image + 1 - self.level) / (2 - self.level)).clamp(min=0)
        return 2 * signal**self.exponent - 1


def simulated_pairs(
    anatomies: Sequence[Anatomy],
    generator: torch.Generator,
    *,
    shapes: Sequence[tuple[int, int, int]],
    modalities: Sequence[str] = MODALITIES,
    pairs_per_case: int = 2,
    source_weights: Mapping[str, float] | None = None,
    all_images: bool = False,
    contrasts: Sequence[str] | None = None,
    targets_alone: Sequence[str] | None = None,
    device: str = "cpu",
    **options,
) -> Iterator[Pair]:
    """Endless pairs from simulated heads.

    Args:
        anatomies: drawn uniformly.
        shapes: sizes of the crops in voxels, drawn uniformly.
        modalities: sources and targets are among these.
        pairs_per_case: targets that are taken from one simulated head, each with its own sources.
        source_weights: of :func:`draw_roles`.
        all_images: each pair has the head in all contrasts, for what learns them at once.
        contrasts: each pair has one of these, acquired as its source and clean as its target.
        targets_alone: each pair has one of these as its target, and no source.
        **options: of :func:`~.simulation.simulator.simulate`.
    """
    while True:
        anatomy = anatomies[choose(generator, len(anatomies))]
        shape = shapes[choose(generator, len(shapes))]
        if only := contrasts or targets_alone:
            drawn = [only[choose(generator, len(only))] for _ in range(pairs_per_case)]
            roles = [([name] if contrasts else [], name) for name in drawn]
        else:
            roles = [draw_roles(generator, modalities, source_weights) for _ in range(pairs_per_case)]
        needed = [name for name in MODALITIES if any(name in sources for sources, _ in roles)]
        targets = [name for name in modalities if all_images or any(name == target for _, target in roles)]
        case = simulate(
            anatomy, shape=shape, generator=generator, device=device, sources=needed, targets=targets, **options
        )
        for sources, target in roles:
            if pair := _pair(case, sources, target, generator):
                yield pair


def _pair(case: Simulation, sources: Sequence[str], target: str, generator: torch.Generator) -> Pair | None:
    """The pair, or None when the crop missed the head, or the target is of a protocol that only an absent T1 shows."""
    if case.targets[target].count_nonzero() < 0.05 * case.targets[target].numel():
        return None
    unknowable = case.protocol["same_session"] and "T1" not in sources
    if unknowable and target == "T1ce":
        return None
    stripped = case.protocol["skull_stripped"]
    head = case.brain_mask if stripped else torch.ones_like(case.brain_mask)
    if not stripped and chance(generator, ZERO_AIR_CHANCE):
        head = case.labels > 0
    images, dark_ends = {}, {}
    for name in sources:
        jitter = uniform(generator, 1 - GAIN_JITTER, 1 + GAIN_JITTER)
        image = scaled(case.sources[name], jitter * case.source_headroom[name])
        dark_ends[name] = DarkEnd.draw(generator)
        images[name] = outlined(dark_ends[name](image), head | (case.sources[name] > 0) if stripped else head)
    labels = case.labels * case.brain_mask if stripped else case.labels
    clean = {
        name: scaled(image, case.target_headroom[name], BRIGHTEST if sources else 1.0)
        for name, image in case.targets.items()
        if not (unknowable and name == "T1ce")
    }
    if case.protocol["same_session"] and "T1ce" in clean and "T1" in sources:  # it differs by the contrast agent alone
        clean["T1ce"] = dark_ends["T1"](clean["T1ce"])
    lesions = (case.lesion_mask & case.brain_mask)[None, None]
    return Pair(images, target, clean[target], case.protocol["anatomy"], labels[None, None], clean, lesions)
