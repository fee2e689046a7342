"""Small draws from a torch.Generator, and smooth random fields."""

from __future__ import annotations

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
    matrices = [spline_matrix(size, spacing, device) for size in shape]
    knots = torch.randn([matrix.shape[1] for matrix in matrices], generator=generator, device=generator.device).to(
        device
    )
    return apply_matrices(knots, matrices) * 2.9  # the sum of squared cubic B-spline weights averages 0.48 an axis


def gaussian_matrix(size: int, sigma: float, device: torch.device | str = "cpu") -> Tensor:
    """(size, size) matrix of a Gaussian blur of `sigma` voxels, renormalized at the ends."""
    index = torch.arange(size, device=device, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((index[:, None] - index) / max(sigma, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdim=True)
