"""Why a job failed, in the few kinds that the user can do something about. Importing this does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DivergenceError, InputError, ModelPackageError, OutOfMemoryError, OutputError
from .protocol import ProtocolError

CANCELLED = "cancelled"  # how the worker confirms that it stopped; no failure

REMEDIES = {
    "out_of_memory": "Close other programs, crop the volume to the head, or choose the CPU as the device.",
    "driver": "Choose the CPU as the device, or let the installation check say what to install or update.",
    "installation": "The installation check says what is missing or damaged, and what to do; then run again.",
    "damaged_model": "Choose another model or method, or install the model package again.",
    "bad_input": "Change the volume or the option that the message names, then run again.",
    "diverged": "Nothing was kept; run again with more steps, another seed or another method.",
    "disk": "Free space on the disk of the temporary folder, then run again.",
    "worker_died": (
        "Run again, a new worker is started; if it dies again, memory has probably run out: close other programs or "
        "crop the volume to the head."
    ),
    "protocol": "Restart the application; if that does not help, install the extension again.",
    "defect": "Run again; if it happens again, please report it with the log.",
}

# CUDA, its libraries, AMD's and Apple's counterparts. A plain "cuda" would also catch defects of the program.
_DRIVER_SIGNS = (
    "cuda error",
    "cuda driver",
    "cudnn error",
    "cudnn_status",
    "cublas_status",
    "nvidia driver",
    "no kernel image",
    "hip error",
    "mps backend",
)


@dataclass(frozen=True)
class Failure:
    """Why a job failed.

    Attributes:
        kind: a key of :data:`REMEDIES`.
        message: one sentence that says what is wrong.
        remedy: one sentence that says what to do.
    """

    kind: str
    message: str
    remedy: str


def failure(kind: str, message: str) -> Failure:
    """The failure of that kind, with its remedy."""
    return Failure(kind, message, REMEDIES[kind])


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception of the engine means."""
    reason = " ".join(str(error).split())
    if isinstance(error, OutOfMemoryError):
        return failure("out_of_memory", str(error))
    if _is_out_of_memory(error):
        return failure("out_of_memory", f"The memory does not suffice ({reason or type(error).__name__}).")
    if isinstance(error, ModelPackageError):
        return failure("damaged_model", str(error))
    if isinstance(error, InputError):
        return failure("bad_input", str(error))
    if isinstance(error, DivergenceError):
        return failure("diverged", str(error))
    if isinstance(error, ProtocolError):
        return failure("protocol", str(error))
    if isinstance(error, ImportError):
        return failure("installation", f"What computes cannot be loaded ({reason}).")
    if isinstance(error, RuntimeError) and any(sign in reason.lower() for sign in _DRIVER_SIGNS):
        return failure("driver", f"The graphics driver failed ({reason}).")
    if isinstance(error, (OutputError, OSError)):
        return failure("disk", f"The volumes cannot be handed over in the temporary folder ({reason}).")
    return failure("defect", f"Unexpected {type(error).__name__} ({reason}): a defect of the program.")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):  # torch is asked only about its own errors: it may be unable to load
        return False
    from ..device import is_out_of_memory

    return is_out_of_memory(error)
