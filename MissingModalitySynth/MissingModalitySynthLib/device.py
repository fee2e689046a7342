"""Where to compute: devices, whether they really work, and how much memory they have."""

from __future__ import annotations

import ctypes
import sys

import psutil
import torch
from torch import nn
from torch.nn import functional as F

from .errors import InputError

CPU = torch.device("cpu")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
# Metal and older CUDA, PyTorch's CPU allocator on Linux and on Windows, cuDNN and cuBLAS.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def available_devices() -> list[str]:
    """Names that a request may ask for, best first: each CUDA GPU, Apple's GPU, the CPU."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """The device to compute on, and a sentence when it is not the one that was hoped for.

    A GPU is trusted only after a small convolution has run on it and come out right: drivers and builds that do not fit
    the card are often noticed no earlier.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        InputError: for a device that this machine does not have.
    """
    known = available_devices()
    wanted = known[0] if name == "auto" else {"cuda": "cuda:0"}.get(name, name)
    if wanted not in known:
        raise InputError(f"This machine has no device '{name}'; choose one of auto, {', '.join(known)}.")
    if wanted == "cpu":
        return CPU, ""
    problem = _kernel_problem(torch.device(wanted))
    if problem is None:
        return torch.device(wanted), ""
    return CPU, f"The device {wanted} cannot be used ({problem}); computing on the CPU instead."


def _kernel_problem(device: torch.device) -> str | None:
    image, kernel = torch.ones(1, 1, 8, 8, 8), torch.ones(1, 1, 3, 3, 3)
    try:
        result = F.conv3d(image.to(device), kernel.to(device)).cpu()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None if torch.allclose(result, torch.full_like(result, 27.0)) else "a test convolution came out wrong"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The precision in which networks run fastest without harm, or None for float32.

    CPUs and GPUs without bfloat16 instructions emulate it slowly; float16 is not used, as it can overflow.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_mkldnn = device.type == "cpu" and torch.backends.mkldnn.is_available()  # not in every build for macOS
        native = has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else None


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device; Apple's GPU shares the computer's memory."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available


def channels_last(module: nn.Module) -> nn.Module:
    """The module with the weights of its convolutions, in two or three dimensions, in the layout that is fast."""
    for parameter in module.parameters():
        if parameter.ndim in (4, 5):
            layout = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return module


def keep_large_blocks() -> None:
    """Let this process reuse the memory of large arrays, for programs of their own such as the command line.

    glibc gives blocks over 32 MB back to the system whenever they are freed, and the system clears every page when it
    hands them out again: a large head would cost up to twice as much per voxel as a small one. Without glibc, nothing
    happens.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is a device's or the CPU allocator's way to say that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)
