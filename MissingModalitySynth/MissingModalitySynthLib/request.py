"""What is asked of the engine, and whether it can be done: no torch here, so that every face can check early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .canonical import check_overlap
from .errors import InputError, ModelPackageError
from .modality import canonical_name
from .model_package import ModelPackage
from .volume import Volume, check_usable


@dataclass(frozen=True)
class Request:
    """What is to be made from what.

    Attributes:
        sources: acquired volumes of one patient in one frame, by modality; any grids.
        targets: modalities to make, none of them a source.
        package: the model.
        reference: the volume on whose grid the results are; the first source by default.
        method: one of the package's methods; its default if None.
        steps: evaluations of the denoiser; the method's default if None.
        samples: with more than one, the result is their mean, and their standard deviation is returned too.
        seed: equal requests with equal seeds give equal voxels on the same machine.
        device: see :func:`~.device.choose_device`.
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


def checked(request: Request) -> Request:
    """The request with canonical names and all defaults filled in, or the reason why it cannot be done.

    Raises:
        InputError: for volumes, modalities or options that cannot be used.
        GeometryError: when the sources do not show the same part of the patient.
        ModelPackageError: when the package has no such method.
    """
    package = request.package
    if not request.sources:
        raise InputError("At least one source volume is needed.")
    if not request.targets:
        raise InputError(f"At least one target is needed; the package '{package.name}' makes {_list(package.targets)}.")
    sources: dict[str, Volume] = {}
    for name, volume in request.sources.items():
        if canonical_name(name) in sources:
            raise InputError(f"{canonical_name(name)} is given twice as a source; choose one of its volumes.")
        sources[canonical_name(name)] = volume
    targets = tuple(dict.fromkeys(canonical_name(name) for name in request.targets))
    method = request.method or package.default_method
    if method not in package.methods:
        raise ModelPackageError(
            f"The package '{package.name}' has no method '{method}', only {_list(package.methods)}."
        )
    for name in sources:
        if name not in package.sources:
            raise InputError(
                f"The package '{package.name}' cannot start from {name}, only from {_list(package.sources)}."
            )
    for name in targets:
        if name in sources:
            raise InputError(
                f"{name} is both a source and a target; it is acquired already, so leave it out of the targets."
            )
        if name not in package.targets:
            raise InputError(f"The package '{package.name}' cannot make {name}, only {_list(package.targets)}.")
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


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
