"""What is asked of the engine, and whether it can be done: no torch here, so that every face can check early."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .canonical import check_overlap
from .errors import InputError, ModelPackageError
from .modality import OTHER, canonical_name, shown_name, source_name
from .model_package import ModelPackage
from .package_format import ZERO_SHOT
from .volume import Volume, check_usable


@dataclass(frozen=True)
class Request:
    """What is to be made from what.

    Attributes:
        sources: acquired volumes of one patient in one frame, by modality; any grids. The method ``ZERO_SHOT`` takes
            one of any modality, also ``OTHER``.
        targets: modalities to make, none of them a source.
        package: the model.
        reference: the volume on whose grid the results are; the first source by default.
        method: one of the package's methods; if None its default, or the one that knows the sources' modalities.
        steps: evaluations of the denoiser; the method's default if None.
        samples: with more than one, the result is their mean, and their standard deviation is returned too.
        seed: equal requests with equal seeds give equal voxels on the same machine.
        device: see :func:`~.device.choose_device`.
        shading: the results get the coil's shading of the sources, where the model makes images without any (see
            ``shading``); False: they do not.
        brain_apart: where the model knows brains without their skull better, and its segmenter finds the brain of a
            whole head, this brain is synthesized apart and put back into the head (see ``brain``); False: it is not.
        keep_last_good: where sampling diverges, the result is the last good estimate, and a notice and the provenance
            say so; else it is an error.
    """

    sources: Mapping[str, Volume]
    targets: Sequence[str]
    package: ModelPackage
    reference: Volume | None = None
    method: str | None = None
    steps: int | None = None
    samples: int = 1
    seed: int = 0
    device: str = "auto"
    shading: bool = True
    brain_apart: bool = True
    keep_last_good: bool = False


def checked(request: Request) -> Request:
    """The request with canonical names and all defaults filled in, or the reason why it cannot be done.

    Raises:
        InputError: for volumes, modalities or options that cannot be used.
        GeometryError: when the sources do not show the same part of the patient.
        ModelPackageError: when the package has no such method, for example no paired or no zero-shot one.
    """
    package = request.package
    if not request.sources:
        raise InputError("At least one source volume is needed.")
    if not request.targets:
        makes = dict.fromkeys((*package.targets, *package.zero_shot_targets))
        raise InputError(f"At least one target is needed; the package '{package.name}' makes {_list(makes)}.")
    sources: dict[str, Volume] = {}
    for given, volume in request.sources.items():
        name = source_name(given)
        if name in sources:
            raise InputError(f"{shown_name(name)} is given twice as a source; choose one of its volumes.")
        sources[name] = volume
    targets = tuple(dict.fromkeys(canonical_name(name) for name in request.targets))
    method = request.method or package.method_for(sources)
    check_method(package, method)
    _check_sources(package, method, tuple(sources))
    for name in targets:
        if name in sources:
            raise InputError(
                f"{name} is both a source and a target; it is acquired already, so leave it out of the targets."
            )
        if name not in package.targets_of(method):
            able = package.methods_from(sources)
            others = [
                each for each in able if name in package.targets_of(each) and (each != ZERO_SHOT or len(sources) == 1)
            ]
            advice = f" by the method '{method}'; the method '{others[0]}' can" if others else ""
            made = _list(package.targets_of(method))
            unlisted = f" from an {shown_name(OTHER)}" if OTHER in sources and name in package.targets else ""
            raise InputError(f"The package '{package.name}' cannot make {name}{unlisted}, only {made}{advice}.")
    for option, value, limit in (("steps", request.steps, 1000), ("samples", request.samples, 100)):
        if value is not None and not 1 <= value <= limit:
            raise InputError(f"The number of {option} must be between 1 and {limit}, not {value}.")
    if not 0 <= request.seed < 2**63:
        raise InputError(f"The seed must be a non-negative 64-bit integer, not {request.seed}.")
    reference = request.reference or next(iter(sources.values()))
    for volume in (*sources.values(), reference):
        check_usable(volume)
    check_overlap([volume for volume in sources.values() if volume is not reference], reference)
    return replace(request, sources=sources, targets=targets, reference=reference, method=method)


def check_method(package: ModelPackage, method: str) -> None:
    """Raises ModelPackageError when the package has no such method, and says what is meant to be used instead."""
    if method not in package.methods:
        advice = "choose one of these, or another package"
        if method == ZERO_SHOT:
            advice = f"choose one of these for a source that is {_list(package.sources)}, or a zero-shot package"
        elif package.methods == (ZERO_SHOT,):
            advice = "it was trained on its targets alone; choose that, or a package with paired methods"
        raise ModelPackageError(
            f"The package '{package.name}' has no method '{method}', only {_list(package.methods)}: {advice}."
        )


def _check_sources(package: ModelPackage, method: str, sources: Sequence[str]) -> None:
    if method == ZERO_SHOT:
        if len(sources) > 1:
            names = _list([shown_name(name) for name in sources])
            raise InputError(f"The method '{ZERO_SHOT}' starts from one source, not from {names}: choose one of them.")
        return
    for name in sources:
        if name not in package.sources:
            known = f"only from {_list(package.sources)}"
            advice = f"; a package with the method '{ZERO_SHOT}' starts from any contrast" if name == OTHER else ""
            if ZERO_SHOT in package.methods:
                advice = f" by the method '{method}'; the method '{ZERO_SHOT}' starts from any contrast"
            raise InputError(f"The package '{package.name}' cannot start from {shown_name(name)}, {known}{advice}.")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
