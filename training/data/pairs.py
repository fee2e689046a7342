"""Training pairs from scans, to be used alone or mixed with simulated ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Transform

from MissingModalitySynthLib.errors import InputError, SynthesisError
from MissingModalitySynthLib.modality import MODALITIES

from ..batches import GAIN_JITTER, DarkEnd, Pair, choose, draw_roles, outlined
from ..simulation.artefacts import acquire
from ..simulation.randomness import chance, device_generator, uniform
from ..simulation.simulator import STRIPPED_BEFORE
from .cache import CanonicalSubject, load_subject
from .painting import canvas, paint
from .subjects import Subject, check_policy

_MIN_HEAD = 0.05  # of a crop, without its padding


def subject_pairs(
    subjects: Sequence[Subject],
    generator: torch.Generator,
    *,
    shapes: Sequence[tuple[int, int, int]],
    pairs_per_case: int = 2,
    source_weights: Mapping[str, float] | None = None,
    policy: str = "skip",
    skipped: dict[str, str] | None = None,
    artefacts: float = 0.0,
    pathology: float = 0.0,
    targets: Sequence[str] | None = None,
    targets_alone: Sequence[str] | None = None,
    device: str = "cpu",
    report: Callable[[str], None] = print,
    **options,
) -> Iterator[Pair]:
    """Endless pairs from acquired scans: random crops, flipped left to right or not, random sources of each target.

    All that is random comes from ``generator``, and a broken subject takes its draw as well: the same generator gives
    the same pairs, whatever was skipped before.

    Args:
        subjects: drawn uniformly; each has two contrasts or more.
        shapes: sizes of the crops in voxels, drawn uniformly; smaller scans are padded with background.
        pairs_per_case: targets that are taken from one crop, each with its own sources.
        source_weights: of :func:`~..batches.draw_roles`.
        policy, skipped: what a subject that can't be loaded does, see :func:`load_each`; streams that share one
            ``skipped`` warn once for all of them.
        targets: only these are targets, all are sources; None: all are targets.
        artefacts: factor on what :func:`~..simulation.artefacts.acquire` does to the sources, with gains as of
            simulated ones; 0: they stay as they were acquired.
        pathology: factor on the chances of what :func:`~.painting.paint` adds to skull-stripped subjects with a T1; 0:
            nothing.
        targets_alone: each pair has one of these as its target, and no source; subjects have one of them or more.
        **options: ``load`` of :func:`load_each`, and options of :func:`~.cache.load_subject`.

    Raises:
        InputError: no subject can be used, or one can't and the policy is "stop"; a subject has a single contrast, or
            none of ``targets``.
    """
    if without := [s.name for s in subjects if targets is not None and not set(targets) & set(s.files)]:
        raise InputError(f"Subject '{without[0]}' has none of the contrasts to learn: {', '.join(targets)}.")
    if not targets_alone and (lonely := [subject.name for subject in subjects if len(subject.files) < 2]):
        raise InputError(f"Subject '{lonely[0]}' has fewer than two contrasts: no pair can be made of it.")
    skipped = {} if skipped is None else skipped
    drawn = _drawn(subjects, generator, skipped)
    for case in load_each(drawn, policy=policy, skipped=skipped, report=report, **options):
        shape = shapes[choose(generator, len(shapes))]
        images, mask, lesions, start = _crop(case, shape, generator)
        flip = chance(generator, 0.5)
        names = [name for name in targets_alone or MODALITIES if name in images]
        if targets_alone:
            roles = [([], names[choose(generator, len(names))]) for _ in range(pairs_per_case)]
        else:
            roles = [draw_roles(generator, names, source_weights) for _ in range(pairs_per_case)]
        if mask.mean() < _MIN_HEAD:  # of the part of the crop that is within the scan
            continue
        judged = images
        if pathology and (scan := canvas(case)) and (painted := paint(scan, images, start, generator, pathology)):
            images, judged, added = painted
            lesions = added if lesions is None else lesions | added

        def tensor(image: np.ndarray, flip: bool = flip) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(image[::-1] if flip else image))[None, None].to(device)

        tensors = {name: tensor(image) for name, image in images.items()}
        lesions = None if lesions is None else tensor(lesions)
        known = {name: tensor(image) for name, image in judged.items() if targets is None or name in targets}
        if targets_alone:
            known = {name: image.clamp(max=1) for name, image in known.items()}
        for sources, target in roles:
            if target not in known:
                continue
            chosen = {name: tensors[name].clamp(max=1) for name in sources}
            if artefacts:
                chosen = {name: _acquired_again(image, generator, artefacts) for name, image in chosen.items()}
            yield Pair(chosen, target, known[target], subject=case.name, images=known, lesions=lesions)


class _Load(Transform):
    """:func:`~.cache.load_subject` in MONAI's terms: what is no ``Transform`` is taken for random and not cached."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def __call__(self, subject: Subject) -> CanonicalSubject:
        return load_subject(subject, **self.options)


def in_memory(subjects: Sequence[Subject], count: int, **options) -> Callable[[Subject], CanonicalSubject]:
    """A ``load`` for :func:`load_each` that keeps the first ``count`` subjects in memory, in MONAI's CacheDataset.

    Args:
        **options: of :func:`~.cache.load_subject`.
    """
    kept = CacheDataset(
        list(subjects),
        transform=_Load(options),
        cache_num=count,
        runtime_cache="threads",  # a subject is loaded when it is drawn, not before the first step
        copy_cache=False,  # crops are copies already
        progress=False,
    )
    places = {subject.name: place for place, subject in enumerate(subjects)}

    def load(subject: Subject) -> CanonicalSubject:
        try:
            return kept[places[subject.name]]
        except RuntimeError as error:
            if isinstance(error.__cause__, SynthesisError):  # MONAI wraps what a transform raises
                raise error.__cause__ from None
            raise

    return load


def load_each(
    subjects: Iterable[Subject],
    *,
    load: Callable[..., CanonicalSubject] = load_subject,
    policy: str = "skip",
    skipped: dict[str, str] | None = None,
    report: Callable[[str], None] = print,
    **options,
) -> Iterator[CanonicalSubject]:
    """Load one subject after the other.

    Args:
        subjects: may be endless and come again.
        load: how, :func:`~.cache.load_subject` or what :func:`in_memory` gives.
        policy: a subject that can't be loaded, say for a file that broke in the middle of an epoch, is left out with
            one warning ("skip"), or ends the run with its error ("stop").
        skipped: receives the sentence of each subject left out by its name; those already in it are not tried again.
        **options: of ``load``.
    """
    check_policy(policy)
    skipped = {} if skipped is None else skipped
    for subject in subjects:
        if subject.name in skipped:
            continue
        try:
            loaded = load(subject, **options)
        except InputError as error:
            if policy == "stop":
                raise
            skipped[subject.name] = str(error)
            report(f"Skipped ({len(skipped)} so far): {error}")
        else:
            yield loaded


def mixed_pairs(
    streams: Sequence[Iterator[Pair]], shares: Sequence[float], generator: torch.Generator, in_a_row: int = 1
) -> Iterator[Pair]:
    """Endless pairs from several streams, say simulated and acquired ones.

    Args:
        shares: of the streams, on any positive scale.
        in_a_row: pairs that are taken from a stream before the next draw; a stream's ``pairs_per_case`` wastes nothing.
    """
    weights = torch.tensor(shares, dtype=torch.float64)
    while True:
        yield from islice(streams[int(torch.multinomial(weights, 1, generator=generator))], in_a_row)


def _drawn(subjects: Sequence[Subject], generator: torch.Generator, skipped: dict[str, str]) -> Iterator[Subject]:
    while len(skipped) < len(subjects):
        yield subjects[choose(generator, len(subjects))]
    raise InputError(f"None of the {len(subjects)} subjects can be used. {next(iter(skipped.values()), '')}".strip())


def _crop(
    case: CanonicalSubject, shape: Sequence[int], generator: torch.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None, list[int]]:
    """Images of one random box of the shape, with background (-1) where it is larger than the scan, the mask of the
    part inside the scan, the lesions, and the scan's index of the box's first voxel."""
    taken, padding, first = [], [], []
    for size, wanted in zip(case.mask.shape, shape, strict=True):
        start = choose(generator, abs(size - wanted) + 1)
        inside = size >= wanted
        taken.append(slice(start, start + wanted) if inside else slice(None))
        padding.append((0, 0) if inside else (start, wanted - size - start))
        first.append(start if inside else -start)
    box = tuple(taken)
    images = {name: np.pad(image[box], padding, constant_values=-1.0) for name, image in case.images.items()}
    lesions = None if case.segmentation is None else np.pad(case.segmentation[box] > 0, padding)
    return images, case.mask[box], lesions, first


def _acquired_again(image: torch.Tensor, generator: torch.Generator, artefacts: float) -> torch.Tensor:
    """An image (1, 1, X, Y, Z) in [-1, 1] with artefacts, another gain and dark end; exact background stays so, but
    for soft edges in part of the draws."""
    signal = (image[0, 0] + 1) / 2
    head = signal > 0
    mask = head if chance(generator, STRIPPED_BEFORE) else None
    again, _ = acquire(
        signal, generator, device_generator(generator, image.device), strength=artefacts, brain_mask=mask
    )
    if mask is not None:
        head = head | (again > 0)
    gain = uniform(generator, 1 - GAIN_JITTER, 1 + GAIN_JITTER)
    return outlined(DarkEnd.draw(generator)((2 * gain * again - 1).clamp(max=1)[None, None]), head)
