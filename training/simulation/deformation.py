"""Where each voxel of the simulated volume lies in the anatomy: affine, mirrored, non-linear, displaced by a mass."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from training.simulation.anatomy import Anatomy
from training.simulation.randomness import chance, smooth_field, uniform


def random_affine(generator: Generator, *, scale: float = 0.15, rotation: float = 15.0, shear: float = 0.08) -> Tensor:
    """3x3 matrix: rotation (degrees, about each axis) x shear x scale, mirrored left-right in half the draws."""
    matrix = torch.eye(3)
    for axis in range(3):
        angle = math.radians(uniform(generator, -rotation, rotation))
        i, j = [k for k in range(3) if k != axis]
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    shears = torch.eye(3) + torch.triu((2 * torch.rand(3, 3, generator=generator) - 1) * shear, 1)
    overall = uniform(generator, -scale, scale)
    scales = 1 + overall + (2 * torch.rand(3, generator=generator) - 1) * scale / 3
    mirror = torch.tensor([-1.0 if chance(generator, 0.5) else 1.0, 1.0, 1.0])
    return matrix @ shears @ torch.diag(mirror / scales)


def sampling_positions(
    anatomy: Anatomy, shape: tuple[int, int, int], generator: Generator, device: torch.device, *, deform: float = 1.0
) -> Tensor:
    """Anatomy index of every voxel, (X, Y, Z, 3) float32.

    The patch is centred on the brain, off by as much as the brain overlaps it. `deform` scales all randomness of the
    shape (0: the anatomy as it is).
    """
    low, high = (torch.tensor(corner, dtype=torch.float32) for corner in anatomy.brain_box)
    slack = ((high - low - torch.tensor(shape)) / 2).clamp(min=0) + 6 * deform
    centre = (low + high) / 2 + (2 * torch.rand(3, generator=generator) - 1) * slack
    matrix = random_affine(generator, scale=0.15 * deform, rotation=15 * deform, shear=0.08 * deform)
    if deform == 0:
        matrix = torch.eye(3)
    positions = torch.empty(*shape, 3, device=device)
    axes = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    wide, narrow = (deform * uniform(generator, 1, 3.5), deform * uniform(generator, 0.3, 1.0))
    for k in range(3):
        row = matrix[k].tolist()
        plane = row[0] * axes[0][:, None, None] + row[1] * axes[1][:, None] + row[2] * axes[2]
        field = wide * smooth_field(generator, shape, 28, device)
        field += narrow * smooth_field(generator, shape, 12, device)
        positions[..., k] = plane + field + centre[k].item()
    return positions


def displace_mass(positions: Tensor, centre: Tensor, radius: float, push: float) -> Tensor:
    """Push tissue away from `centre`, most at `radius` and there by `push` voxels (invertible if push < 0.5 radius)."""
    offset = positions - centre.to(positions)
    squared = (offset**2).sum(-1, keepdim=True) / radius**2
    return positions - offset * (push / radius) * torch.exp(0.5 * (1 - squared))
