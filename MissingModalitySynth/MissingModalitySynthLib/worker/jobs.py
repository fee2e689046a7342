"""What the caller of the client gives and gets. Importing this imports neither torch nor SimpleITK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .failures import Failure

if TYPE_CHECKING:
    from ..volume import Volume

START = "start"  # the stage of a job that was accepted but has not begun, as torch may still have to be loaded


@dataclass(frozen=True)
class Job:
    """What is to be made from what.

    Attributes:
        sources: acquired volumes by modality (or "other"), of any real number type; read until the worker has begun.
        targets: modalities to make.
        package: folder of the model package.
        method: one of its methods; its default if None.
        device: ``auto``, ``cpu``, ``cuda:N`` or ``mps``.
        steps: evaluations of the denoiser; the method's default if None.
        samples: with more than one, the result is their mean, and their standard deviation is returned too.
        seed: equal jobs with equal seeds give equal voxels on the same machine.
        reference: the source on whose grid the results are; the first if None.
        spacing: voxel size in mm along the reference's axes i, j, k, over the same field of view; its own if None.
    """

    sources: Mapping[str, Volume]
    targets: Sequence[str]
    package: Path
    method: str | None = None
    device: str = "auto"
    steps: int | None = None
    samples: int = 1
    seed: int = 0
    reference: str | None = None
    spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class SegmentationJob:
    """What is to be segmented; its results are label maps by the same keys.

    Attributes:
        sources: acquired or synthetic volumes by any key, of any real number type; read until the worker has begun.
        package: folder of a model package with a segmenter.
        device: ``auto``, ``cpu``, ``cuda:N`` or ``mps``.
    """

    sources: Mapping[str, Volume]
    package: Path
    device: str = "auto"


@dataclass(frozen=True)
class TargetResult:
    """What was made for one target, or of one volume that was segmented.

    Attributes:
        volume: float32 on the reference's exact grid; or a label map, uint8, on the volume's own.
        std: standard deviation over the samples, in the same units; None for one sample.
        provenance: everything that is needed to tell where the volume came from, as plain data.
        notices: sentences about what was done differently from what was asked.
    """

    volume: Volume
    std: Volume | None
    provenance: Mapping[str, Any]
    notices: tuple[str, ...] = ()


class Listener(Protocol):
    """Follows one job. Exactly one of ``on_result``, ``on_failure`` and ``on_cancelled`` is called, once, at its end.

    All are called in the caller's thread, and never from within ``synthesize``, ``segment`` or ``cancel``.
    """

    def on_progress(self, stage: str, fraction: float, target: str | None, seconds_left: float | None) -> None: ...

    def on_result(self, results: Mapping[str, TargetResult]) -> None: ...

    def on_failure(self, failure: Failure) -> None: ...

    def on_cancelled(self) -> None: ...


@dataclass(frozen=True)
class DeviceInfo:
    """A device of the worker.

    Attributes:
        name: what a job may ask for: ``cpu``, ``cuda:0``, ``mps``.
        label: what it is called, for people.
        memory_bytes: all of its memory.
        works: whether a small convolution came out right on it.
        reason: why not.
    """

    name: str
    label: str
    memory_bytes: int
    works: bool
    reason: str = ""


@dataclass(frozen=True)
class WorkerInfo:
    """A worker.

    Attributes:
        version: of this program.
        python: its version.
        pid: of the process that computes, which a launcher may have started.
        torch: its version; None until it has been imported.
        devices: best first; empty until torch has been imported.
    """

    version: str
    python: str
    pid: int
    torch: str | None = None
    devices: tuple[DeviceInfo, ...] = ()
