"""The one function behind every face of the program: acquired volumes in, synthetic volumes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch

from . import NOTICE, __version__
from .brain import find_brain, shows_skull
from .canonical import CanonicalGrid, from_canonical
from .decoding import decode
from .device import CPU, autocast_dtype, channels_last, choose_device, free_memory, is_out_of_memory
from .errors import DivergenceError, ModelPackageError, OutOfMemoryError
from .input_range import range_warnings
from .intensity import BRIGHTEST, unscale
from .modality import shown_name
from .model_package import ModelPackage
from .package_format import ZERO_SHOT
from .preparation import Brain, Prepared, prepare, take_out
from .progress import Progress, Run
from .request import Request, checked
from .segmentation import load_segmenter
from .translators import Translator, build_translator
from .volume import Volume

_MOST_UNLIKE = 2.0  # what is made of a head's brain is at most so many times as bright as that of the brain alone


@dataclass(frozen=True)
class Result:
    """What came out of a request.

    Attributes:
        volumes: by target: float32, on the reference's exact grid, 0 where the sources show no head, and at most
            1.6 times as bright as the reference: its 99.5th percentile, from its background, times the shading.
        deviations: by target, if samples > 1: the standard deviation over the samples, in the same units.
        provenance: by target: everything that is needed to tell where the volume came from, as plain data.
        seconds: by stage.
        notices: sentences about what was done differently from what was asked.
    """

    volumes: dict[str, Volume]
    deviations: dict[str, Volume]
    provenance: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    notices: tuple[str, ...] = ()


def synthesize(
    request: Request,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> Result:
    """Make the requested targets.

    Args:
        request: see :class:`Request`.
        progress: called at the beginning of every stage and step.
        cancelled: asked at the same moments; the run stops when it returns true.
        warn: called, before anything is synthesized, with each sentence on a source that is unlike the training; the
            result has them too, in its notices and in the provenance.

    Raises:
        InputError: for volumes, modalities or options that cannot be used.
        GeometryError: when the sources do not show the same part of the patient.
        ModelPackageError: when the package is damaged or cannot do what is asked.
        OutOfMemoryError: when neither the device nor the CPU has the memory.
        DivergenceError: when the sampling ran away, and the last good estimate is not wanted or there is none.
        Cancelled: when ``cancelled`` returned true.
    """
    request = checked(request)
    device, notice = choose_device(request.device)
    notices = [notice] if notice else []
    run = Run(progress, cancelled, len(request.targets), request.samples)
    with run.stage("load model"):
        translator = load_translator(request.package, request.method)
    with run.stage("prepare"):
        prepared = prepare(request, translator.multiple)
        seen, spacing = prepared.images, prepared.grid.geometry.spacing
        named = request.method != ZERO_SHOT
        warnings = range_warnings(request.package, request.sources, seen, spacing, named=named)
    for sentence in warnings:
        warn(sentence)
    notices += warnings
    try:
        with _within_memory(translator, prepared.grid, device):
            made, whereabouts = _make(_Job(request, translator, device, run, notices), prepared)
    except OutOfMemoryError:
        if device == CPU:
            raise
        notices.append(f"The memory of {device} does not suffice; computed on the CPU instead.")
        device = CPU
        with _within_memory(translator, prepared.grid, device):
            made, whereabouts = _make(_Job(request, translator, device, run, notices), prepared)

    if "T1ce" in request.targets:
        notices.append("T1ce: the sources do not show the uptake of contrast agent; enhancement, or none, is a guess.")
    for target, (source, share) in translator.kept.items():
        if target in request.targets and source in request.sources:
            notices.append(f"{target}: {share:.0%} of it is the {source} itself.")
    volumes, deviations = {}, {}
    with run.stage("native grid"):
        for target, (mean, deviation, _) in made.items():
            kept = translator.kept.get(target)
            volumes[target] = _to_native(mean, target, request, prepared, kept)
            if deviation is not None:  # 0 in [0, 2] is 0 in the source's units, as -1 in [-1, 1] is
                name = f"{target} standard deviation"
                deviations[target] = _to_native(deviation - 1, name, request, prepared)
    provenance = {target: _provenance(request, target, translator, device) for target in request.targets}
    for target, record in provenance.items():
        if warnings:
            record["warnings"] = warnings
        if whereabouts:
            record["brain"] = whereabouts
        if made[target].diverged is not None:
            record["diverged_at_step"] = made[target].diverged
    return Result(
        volumes=volumes,
        deviations=deviations,
        provenance=provenance,
        seconds=run.seconds,
        notices=tuple(dict.fromkeys(notices)),
    )


class _Made(NamedTuple):
    """Mean and standard deviation (samples > 1) in [-1, BRIGHTEST] on the canonical grid; the step before which it
    diverged, where what it had reached was kept."""

    mean: np.ndarray
    deviation: np.ndarray | None
    diverged: int | None


class _Job(NamedTuple):
    """What all that is made of one request has in common."""

    request: Request
    translator: Translator
    device: torch.device
    run: Run
    notices: list[str]


_loaded: dict[tuple[str, str], Translator] = {}


def load_translator(package: ModelPackage, method: str) -> Translator:
    """The translator of a package; the last one stays in memory, so that a second run starts at once.

    Raises:
        ModelPackageError: the weights are damaged or do not fit what the package says of them.
    """
    key = (package.digest, method)
    if key not in _loaded:
        configuration, weights = package.configuration(method), package.weights(method)
        _loaded.clear()
        translator = build_translator(method, configuration, weights)
        promised = {*package.targets_of(method), *(() if method == ZERO_SHOT else package.sources)}
        if unknown := promised - {*translator.modalities}:
            raise ModelPackageError(
                f"The package '{package.name}' promises {', '.join(sorted(unknown))}, which its method '{method}' "
                "does not know; ask its makers for a corrected one."
            )
        _loaded[key] = channels_last(translator)
    return _loaded[key]


@contextmanager
def _within_memory(translator: Translator, grid: CanonicalGrid, device: torch.device) -> Iterator[None]:
    """Turn a lack of memory into an error of our own.

    Raises:
        OutOfMemoryError: the device has too little. On a CPU this is foreseen, since Linux kills a process instead of
            telling it.
    """
    bytes_per_value = 4 if autocast_dtype(device) is None else 2
    size = " x ".join(str(n) for n in grid.geometry.size)
    message = f"The memory of {device} does not suffice for a head of {size} voxels; crop the volume or free memory."
    if translator.working_bytes(math.prod(grid.geometry.size), bytes_per_value) > free_memory(device):
        raise OutOfMemoryError(message)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemoryError(message) from error


def _make(job: _Job, prepared: Prepared) -> tuple[dict[str, _Made], str]:
    """What is made of the head; and what is to be said of its brain, if anything."""
    brain, whereabouts = _brain(job, prepared)
    pieces = [prepared, *([brain] if brain else ())]
    steps = _steps(job.request, job.translator)
    passes = [steps * job.translator.passes(piece.grid.geometry.size) for piece in pieces]
    job.run.expect(_samples(job.request, job.translator), passes, joint=job.translator.joint)
    made = [_translate(job, piece) for piece in pieces]
    if brain is None:
        return made[0], whereabouts
    joined = {target: _joined(made[0][target], made[1][target], prepared, brain) for target in made[0]}
    return joined, whereabouts


def _brain(job: _Job, prepared: Prepared) -> tuple[Brain | None, str]:
    """The brain, where it is to be made apart and is found in a head with its skull; and where it was searched for,
    what came of that."""
    request = job.request
    if not (request.brain_apart and job.translator.brain_apart and request.package.has_segmenter):
        return None, ""
    shown = [name for name, volume in request.sources.items() if volume is request.reference]
    image = prepared.images[shown[0] if shown else next(iter(prepared.images))][0, 0].numpy()
    geometry = prepared.grid.geometry
    if not shows_skull(image, prepared.mask, math.prod(geometry.spacing)):
        return None, ""
    with job.run.stage("find brain"):
        segmenter = load_segmenter(request.package).to(job.device)
        head = Volume(image, geometry, request.reference.name)
        mask = find_brain(segmenter, head, prepared.mask, on_window=lambda share: job.run.go_on("find brain"))
    if not mask.any():
        name = request.reference.name
        job.notices.append(f"No whole brain was found in '{name}', so all that it shows was synthesized in one.")
        return None, "not found"
    if np.array_equal(mask, prepared.mask):
        return None, "without a skull"
    job.notices.append(f"The brain of '{request.reference.name}' was found, and synthesized apart from its skull.")
    return take_out(mask, request, prepared, job.translator.multiple), "apart from the skull"


def _joined(head: _Made, inside: _Made, prepared: Prepared, brain: Brain) -> _Made:
    """What was made of the brain alone, in what was made of the whole head, which gets the brightness of that brain."""
    around = head.mean + 1
    own = (inside.mean + 1) * np.float32(brain.intensities.top / prepared.intensities.top)
    there, here = (float(np.median(image[brain.mask])) for image in (around[brain.box], own))
    around *= np.clip(here / max(there, 1e-6), 1 / _MOST_UNLIKE, _MOST_UNLIKE)
    around[brain.box] = np.where(brain.mask, own, around[brain.box])
    return head._replace(mean=np.clip(around - 1, -1, BRIGHTEST))


@torch.no_grad()  # not in inference mode, which takes gradients for guidance from a translator for good
def _translate(job: _Job, piece: Prepared | Brain) -> dict[str, _Made]:
    request, translator, device, run = job.request, job.translator, job.device, job.run
    dtype = autocast_dtype(device)
    translator.to(device)
    run.next_piece()
    steps, samples = _steps(request, translator), _samples(request, translator)
    if samples < request.samples:
        job.notices.append(f"The method '{request.method}' is deterministic here; one sample was made.")
    made = {}
    condition = None
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        with run.stage("encode"):
            latents = translator.encode({name: image.to(device) for name, image in piece.images.items()})
        for target in request.targets:
            if condition is None or not translator.joint:
                with run.stage("condition", target):
                    condition = translator.condition(latents, target)
            total, total_square, diverged = 0.0, 0.0, None
            for sample in range(samples):
                generator = torch.Generator().manual_seed(crc32(f"{request.seed} {target} {sample}".encode()))
                with run.stage("sample", target):
                    on_step = run.on_step(target)
                    try:
                        result = translator.sample(condition, target, steps=steps, generator=generator, on_step=on_step)
                    except DivergenceError as error:
                        if not request.keep_last_good or error.last_good is None:
                            raise
                        result = error.last_good
                        diverged = min(error.step, diverged or error.step)
                        job.notices.append(
                            f"{target}: {str(error).partition(';')[0]}; the last good estimate was kept."
                        )
                with run.stage("decode", target):
                    image = decode(translator, result, free_memory(device), job.notices)
                    image = image[0, 0].float().clamp(-1, BRIGHTEST).cpu().numpy()
                total = total + image.astype(np.float64)
                total_square = total_square + image.astype(np.float64) ** 2
            mean = total / samples
            deviation = None
            if samples > 1:
                variance = (total_square - samples * mean**2) / (samples - 1)
                deviation = np.sqrt(np.maximum(variance, 0)).astype(np.float32)
            made[target] = _Made(mean.astype(np.float32), deviation, diverged)
    return made


def _to_native(
    values: np.ndarray, what: str, request: Request, prepared: Prepared, kept: tuple[str, float] | None = None
) -> Volume:
    """From [-1, BRIGHTEST] on the canonical grid to the reference's units on its grid, shaded, with a share of a source
    in it where that is ``kept`` and there."""
    array = np.where(prepared.mask, unscale(values, prepared.intensities), 0)
    if prepared.shading is not None:
        array = array * prepared.shading
    if kept and kept[0] in prepared.images:
        array = _with_source(array, prepared.images[kept[0]][0, 0].numpy(), kept[1], prepared.mask)
    native = from_canonical(array, prepared.grid).array * prepared.native_mask
    name = f"{what} (synthetic from {' + '.join(map(shown_name, request.sources))})"
    return Volume(native, request.reference.geometry, name)


def _with_source(array: np.ndarray, source: np.ndarray, share: float, mask: np.ndarray) -> np.ndarray:
    """A result with a share of a source, in [-1, 1] with background at -1, after the gain and offset that fit it best.

    The source has its own shading, so this comes after the result got some.
    """
    inside = mask & (source > -1)
    line = np.polyfit(source[inside].astype(np.float64), array[inside].astype(np.float64), 1)
    fitted = np.maximum(np.polyval(line, source), 0)
    return np.where(inside, (1 - share) * array + share * fitted, array)


def _provenance(request: Request, target: str, translator: Translator, device: torch.device) -> dict[str, Any]:
    return {
        "synthetic": True,
        "notice": NOTICE,
        "target": target,
        "sources": {modality: volume.name for modality, volume in request.sources.items()},
        "reference": request.reference.name,
        "method": request.method,
        "mode": translator.mode,
        "steps": _steps(request, translator),
        "samples": _samples(request, translator),
        "seed": request.seed,
        "shading": "of the sources" if request.shading and request.package.unshaded else "of the model",
        **_kept_sources(request, target, translator),
        "package": request.package.name,
        "package_version": request.package.metadata["version"],
        "package_sha256": request.package.digest,
        "software": f"MissingModalitySynth {__version__}",
        "torch": torch.__version__,
        "device": str(device),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _kept_sources(request: Request, target: str, translator: Translator) -> dict[str, Any]:
    source, share = translator.kept.get(target, ("", 0.0))
    return {"share_of_sources": {source: share}} if source in request.sources else {}


def _steps(request: Request, translator: Translator) -> int:
    return (request.steps or translator.default_steps) if translator.iterative else 1


def _samples(request: Request, translator: Translator) -> int:
    return request.samples if translator.stochastic(_steps(request, translator)) else 1
