"""What a run will cost, told before it begins, without torch: from the package's configuration and earlier runs.

The first estimate is coarse: work per voxel from the widths of the networks, at a speed that is typical for the kind of
device. Every finished run then corrects the time that is estimated for its package, method and device.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..model_package import ModelPackage
from ..package_format import ZERO_SHOT

if TYPE_CHECKING:
    from ..volume import Geometry

SETTING = "MissingModalitySynth/MeasuredRuns"

# Multiplications and additions a second that a network of this kind reaches, and seconds per megavoxel for reading,
# resampling and scaling, which always happen on the CPU.
_SPEED = {"cpu": 2.5e11, "mps": 2e12, "cuda": 1.5e13}
_SECONDS_PER_MEGAVOXEL = 0.25
_SECONDS_AT_LEAST = 1.0
_BYTES_PER_VALUE = 2  # bfloat16; devices without it take twice as much
_LIVE_ACTIVATIONS = {"regression": 5, ZERO_SHOT: 4}  # by method, else 12; as measured
# Of zero-shot synthesis on the CPU: the tissues of the source, and a step's gradient of the local mutual information.
_TISSUES_SECONDS_PER_MEGAVOXEL = 3.5
_GUIDANCE_SECONDS_PER_MEGAVOXEL = 3.5
_GUIDANCE_BYTES_PER_VOXEL = 24  # and bin: weights of two images and their gradients, float32
_ARRAYS_OF_A_VOLUME = 6  # native and canonical, with mask and temporaries
_PROCESS_BYTES = 500e6  # Python with torch
_WINDOWS_WORK = 1.5  # of overlapping windows: 2.2 times as many voxels, which small images take less time for
_WINDOWS_BYTES = 110  # per voxel of an image made in windows, of what goes in and what comes out; as measured
STARTING_SECONDS = 6.0  # until a new worker has loaded torch and the model
_TRUST = 0.5  # weight of the newest run against the ones before


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes that a run takes; ``measured`` if an earlier run on the same device corrected the seconds."""

    seconds: float
    memory: float
    measured: bool


class MeasuredRuns:
    """Ratios of measured to estimated time, remembered under one text in a store of settings.

    Args:
        store: keeps the text under :data:`SETTING`, for example the application's settings.
    """

    def __init__(self, store: MutableMapping[str, str]) -> None:
        self._store = store

    def ratio(self, key: str) -> float | None:
        """The ratio for one kind of run, None if nothing was measured."""
        return self._read().get(key)

    def add(self, key: str, ratio: float) -> None:
        """Remember the ratio of one more run."""
        known = self._read()
        if key in known:
            ratio = _TRUST * ratio + (1 - _TRUST) * known[key]
        self._store[SETTING] = json.dumps({**known, key: ratio})

    def _read(self) -> dict[str, float]:
        try:
            known = json.loads(self._store.get(SETTING) or "{}")
        except ValueError:
            return {}
        if not isinstance(known, dict):
            return {}
        return {key: ratio for key, ratio in known.items() if isinstance(ratio, float)}


def key_of(package: ModelPackage, method: str, device: str) -> str:
    """What a measured run can speak for."""
    return f"{package.digest[:16]} {method} {device}"


def is_iterative(method: str, configuration: Mapping[str, Any]) -> bool:
    """Whether the number of steps means anything to a method with these keywords."""
    return method == ZERO_SHOT or "denoiser" in configuration


def estimate(
    package: ModelPackage,
    method: str,
    device: str,
    geometry: Geometry,
    *,
    sources: int,
    targets: int,
    steps: int | None = None,
    samples: int = 1,
    measured: MeasuredRuns | None = None,
) -> Estimate:
    """Cost of a run with the worker's process already there.

    Args:
        package: the model.
        method: one of its methods.
        device: "cpu", "cuda:0", "mps".
        geometry: grid of the reference; the whole field of view counts, though only the head will be computed.
        sources, targets: how many.
        steps: evaluations of the denoiser; the method's default if None.
        samples: how many of each target.
        measured: earlier runs.
    """
    configuration = package.configuration(method)
    native = math.prod(geometry.size)
    voxels = native * math.prod(geometry.spacing) / math.prod(package.spacing)
    latent = voxels / _first_stage_factor(configuration.get("first_stage", {})) ** 3
    width = _width(configuration)
    evaluations = (steps or configuration.get("steps", 2)) if is_iterative(method, configuration) else 1
    passes = targets * (evaluations * samples + sources * ("denoiser" in configuration))
    live = latent
    if method == "regression":  # all targets at once
        passes = 1 + configuration.get("mirrored", False)
        if window := configuration.get("window"):
            live = min(latent, window**3)
            passes *= 1 if live == latent else _WINDOWS_WORK
    work = 2 * 27 * width**2 * latent * passes
    kind = device.partition(":")[0]
    megavoxels = (native + voxels) / 1e6 * (sources + targets) / 2
    seconds = _SECONDS_AT_LEAST + megavoxels * _SECONDS_PER_MEGAVOXEL + work / _SPEED.get(kind, _SPEED["cpu"])

    weights = sum((package.path / path).stat().st_size for path in _weights(package, method)) * 2  # fp16 to fp32
    memory = weights + live * width * _BYTES_PER_VALUE * _LIVE_ACTIVATIONS.get(method, 12)
    memory += latent * _WINDOWS_BYTES * (live < latent)
    if method == ZERO_SHOT:  # with a gradient in each step that lies within the guided range of times
        first, last = configuration.get("guidance_range", (0.0, 1.0)) if configuration.get("guidance") else (0.0, 0.0)
        each = math.ceil(evaluations * (last - first)) * samples * _GUIDANCE_SECONDS_PER_MEGAVOXEL
        if configuration.get("mode", "guided") == "guided":
            each += _TISSUES_SECONDS_PER_MEGAVOXEL
        seconds += each * targets * voxels / 1e6 * _SPEED["cpu"] / _SPEED.get(kind, _SPEED["cpu"])
        memory += voxels * configuration.get("bins", 8) * _GUIDANCE_BYTES_PER_VOXEL
    if kind == "cpu":
        memory += _PROCESS_BYTES + 4 * (native + voxels) * _ARRAYS_OF_A_VOLUME * (sources + targets) / 2
    ratio = measured.ratio(key_of(package, method, device)) if measured else None
    return Estimate(seconds * (1 if ratio is None else ratio), memory, ratio is not None)


def _weights(package: ModelPackage, method: str) -> Sequence[str]:
    return package.networks["methods"][method]["weights"]


def _first_stage_factor(first_stage: Mapping[str, Any]) -> int:
    """By how much the first stage shrinks every axis: one halving a level, or a channel count a level."""
    if first_stage.get("kind") == "haar":
        return 2 ** first_stage.get("levels", 1)
    return 2 ** max(len(first_stage.get("channels", ())) - 1, 0)


def _width(configuration: Mapping[str, Any]) -> int:
    """Channels of the widest activations at the latents' resolution: the first level of every network."""
    return max((3 * n if kind == "features" else n for kind, n in _first_widths(configuration)), default=64)


def _first_widths(part: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in part.items():
        if key == "first_stage":
            continue
        if isinstance(value, Mapping):
            yield from _first_widths(value)
        elif key in ("features", "channels", "spade") and isinstance(value, list) and value:
            yield key, int(value[0])
        elif key == "stem":
            yield key, int(value)
