"""What the worker asks of the engine. The only part of the worker that imports torch."""

from __future__ import annotations

import ctypes
import math
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ..canonical import resample_to
from ..device import available_devices, choose_device, keep_large_blocks
from ..errors import Cancelled, InputError
from ..model_package import load_package
from ..progress import Progress
from ..request import Request
from ..segmentation import segment_all
from ..synthesis import load_translator, synthesize
from ..volume import Geometry, Volume
from .exchange import describe, restore
from .jobs import DeviceInfo

keep_large_blocks()


def devices() -> list[dict[str, Any]]:
    """The devices of this machine, best first, as :class:`~.jobs.DeviceInfo` in plain data; each GPU was tried."""
    return [asdict(_device(name)) for name in available_devices()]


def _device(name: str) -> DeviceInfo:
    memory = psutil.virtual_memory().total
    if name == "cpu":
        return DeviceInfo(name, platform.processor() or platform.machine(), memory, works=True)
    label = "Apple GPU"
    try:
        if name.startswith("cuda"):
            properties = torch.cuda.get_device_properties(name)
            label, memory = properties.name, properties.total_memory
        device, problem = choose_device(name)
    except RuntimeError as error:  # a driver can fail at anything
        return DeviceInfo(name, label, memory, works=False, reason=" ".join(str(error).split()))
    return DeviceInfo(name, label, memory, works=device.type != "cpu", reason=problem)


def load(package: str | None, method: str | None) -> None:
    """Load a package's weights, which stay loaded until another method is used.

    Raises:
        ModelPackageError: the package is damaged or has no such method.
    """
    if package is not None:
        loaded = load_package(Path(package))
        load_translator(loaded, method or loaded.default_method)


def run(
    message: Mapping[str, Any], progress: Callable[[Progress], None], cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Do what a "synthesize" message asks for; the fields of the "result" message.

    Raises:
        SynthesisError: see :func:`~..synthesis.synthesize`.
        OSError: a file cannot be read or written.
    """
    folder = Path(message["folder"])
    sources = {modality: _read(folder, fields) for modality, fields in message["sources"].items()}
    reference = message["reference"] or next(iter(sources), None)
    if reference is not None and reference not in sources:
        raise InputError(f"The reference {reference} is none of the sources: choose one of {', '.join(sources)}.")
    grid = sources.get(reference)
    if grid is not None and message["spacing"] is not None:
        grid = _with_spacing(grid, message["spacing"])
        # The engine takes its units of intensity from the reference, or else, as now, from the first source.
        sources = {reference: sources[reference], **sources}
    options = {name: message[name] for name in ("targets", "method", "device", "steps", "samples", "seed")}
    package = load_package(Path(message["package"]))
    result = synthesize(Request(sources, package=package, reference=grid, **options), progress, cancelled)
    targets = {}
    for number, target in enumerate(result.volumes):
        if cancelled():
            raise Cancelled("Cancelled; nothing was kept.")
        deviation = result.deviations.get(target)
        targets[target] = {
            "volume": _write(result.volumes[target], folder / f"result-{number}.npy"),
            "std": None if deviation is None else _write(deviation, folder / f"result-{number}-std.npy"),
            "provenance": result.provenance[target],
        }
    return {"targets": targets, "notices": result.notices}


def segment(
    message: Mapping[str, Any], progress: Callable[[Progress], None], cancelled: Callable[[], bool]
) -> dict[str, Any]:
    """Do what a "segment" message asks for; the fields of the "result" message, with the sources' keys as targets.

    Raises:
        SynthesisError: see :func:`~..segmentation.segment_all`.
        OSError: a file cannot be read or written.
    """
    folder = Path(message["folder"])
    volumes = {key: _read(folder, fields) for key, fields in message["sources"].items()}
    package = load_package(Path(message["package"]))
    found = segment_all(volumes, package, device=message["device"], progress=progress, cancelled=cancelled)
    targets = {}
    for number, (key, labels) in enumerate(found.labels.items()):
        written = _write(labels, folder / f"result-{number}.npy")
        targets[key] = {"volume": written, "std": None, "provenance": found.provenance[key]}
    return {"targets": targets, "notices": found.notices}


def release_memory() -> None:
    """Give the memory of the last runs back, which this process keeps: to take it again slows the next run down."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def _read(folder: Path, description: Mapping[str, Any]) -> Volume:
    array = np.load(folder / description["file"], allow_pickle=False)
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which the engine refuses by its own sentence
        return restore(description, array.astype(np.float32))


def _write(volume: Volume, file: Path) -> dict[str, Any]:
    """Write voxels in the order that images have in memory there, so that the client need not turn them round."""
    np.save(file, np.asfortranarray(volume.array), allow_pickle=False)
    return describe(volume, file)


def _with_spacing(volume: Volume, spacing: list[float]) -> Volume:
    """The volume on a grid of that spacing (i, j, k; mm) that begins at the same outer corner and covers all of it."""
    if len(spacing) != 3 or not all(0 < value < math.inf for value in spacing):
        raise InputError(f"The output spacing must be three positive numbers of millimetres, not {spacing}.")
    old = volume.geometry
    ratio = np.asarray(spacing) / old.spacing
    size = np.maximum(1, np.ceil(old.size / ratio - 1e-6).astype(int))
    origin = old.index_to_world((ratio - 1) / 2)
    return resample_to(volume, Geometry(size, spacing, origin, old.direction))
