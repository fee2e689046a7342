"""Small draws from a torch.Generator, and smooth random fields."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def chance(generator: Generator, probability: float) -> bool:
    return torch.rand((), generator=generator).item() < probability


def integer(generator: Generator, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def device_generator(generator: Generator, device: torch.device) -> Generator:
    """A generator on `device`, seeded by the next draw of `generator`, for noise of whole volumes."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


def spline_matrix(size: int, spacing: float, device: torch.device | str = "cpu") -> Tensor:
    """(size, knots) matrix of a cubic B-spline with knots every `spacing` voxels."""
    knots = int(size / spacing) + 4
    distance = (torch.arange(size, device=device)[:, None] / spacing - torch.arange(-1, knots - 1, device=device)).abs()
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, inner, outer)


def apply_matrices(volume: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply each of the three axes of (..., X, Y, Z) by its matrix (out, in); None leaves an axis as it is."""
    along_x, along_y, along_z = matrices
    if along_z is not None:
        volume = volume @ along_z.T
    if along_y is not None:
        volume = along_y @ volume
    if along_x is not None:
        flat = along_x @ volume.flatten(-2)
        volume = flat.unflatten(-1, volume.shape[-2:])
    return volume


def smooth_field(generator: Generator, shape: Sequence[int], spacing: float, device: torch.device | str) -> Tensor:
    """A smooth Gaussian field of about unit variance and correlation length `spacing` voxels."""
    return smooth_sum(generator, shape, [(1.0, spacing)], device)


def smooth_sum(
    generator: Generator, shape: Sequence[int], terms: Sequence[tuple[float, float]], device: torch.device | str
) -> Tensor:
    """The sum of independent smooth fields, each given as (standard deviation, spacing in voxels).

    The knots of all fields are expanded along the first axis by one matrix product, which costs more than all else.
    """
    along_x, partly = [], []
    for deviation, spacing in terms:
        matrices = [spline_matrix(size, spacing, device) for size in shape]
        knots = torch.randn([matrix.shape[1] for matrix in matrices], generator=generator, device=generator.device)
        # the sum of squared cubic B-spline weights averages 0.48 an axis
        partly.append(apply_matrices(2.9 * deviation * knots.to(device), [None, *matrices[1:]]))
        along_x.append(matrices[0])
    return apply_matrices(torch.cat(partly), [torch.cat(along_x, 1), None, None])


def gaussian_matrix(size: int, sigma: float, device: torch.device | str = "cpu") -> Tensor:
    """(size, size) matrix of a Gaussian blur of `sigma` voxels, renormalized at the ends."""
    index = torch.arange(size, device=device, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((index[:, None] - index) / max(sigma, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdim=True)


def slight_blur(volume: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (X, Y, Z) by `sigma` <= 0.5 voxels: neighbours alone have a weight; borders are replicated."""
    side = math.exp(-0.5 / sigma**2)
    side /= 1 + 2 * side
    for axis, size in enumerate(volume.shape):
        blurred = (1 - 2 * side) * volume
        for ahead, behind in ((slice(1, size), slice(0, size - 1)), (slice(0, 1), slice(0, 1))):
            blurred.movedim(axis, 0)[ahead].add_(volume.movedim(axis, 0)[behind], alpha=side)
        for ahead, behind in ((slice(0, size - 1), slice(1, size)), (slice(size - 1, size), slice(size - 1, size))):
            blurred.movedim(axis, 0)[ahead].add_(volume.movedim(axis, 0)[behind], alpha=side)
        volume = blurred
    return volume
