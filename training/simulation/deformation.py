"""Where each voxel of the simulated volume lies in the anatomy: affine, mirrored, non-linear, displaced by a mass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn.functional import affine_grid, grid_sample

from training.simulation.anatomy import Anatomy
from training.simulation.randomness import chance, smooth_sum, uniform


def rotation_matrix(degrees: Sequence[float]) -> Tensor:
    """3x3 matrix: the product of rotations about the first, second and third axis."""
    matrix = torch.eye(3)
    for axis, angle in enumerate(map(math.radians, degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = torch.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    return matrix


def random_affine(generator: Generator, *, scale: float = 0.15, rotation: float = 15.0, shear: float = 0.08) -> Tensor:
    """3x3 matrix: rotation (degrees, about each axis) x shear x scale, mirrored left-right in half the draws."""
    matrix = rotation_matrix([uniform(generator, -rotation, rotation) for _ in range(3)])
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
    axes = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    terms = [(deform * uniform(generator, 1, 3.5), 28.0), (deform * uniform(generator, 0.3, 1.0), 12.0)]
    positions = torch.empty(3, *shape, device=device)
    for k, (along_x, along_y, along_z) in enumerate(matrix.tolist()):
        plane = along_y * axes[1][:, None] + along_z * axes[2] + centre[k].item()
        torch.add(plane, axes[0][:, None, None], alpha=along_x, out=positions[k])
        if deform:
            positions[k] += smooth_sum(generator, shape, terms, device)
    return positions.movedim(0, -1)


def displace_mass(positions: Tensor, centre: Tensor, radius: float, push: float) -> Tensor:
    """Push tissue away from `centre`, most at `radius` and there by `push` voxels (invertible if push < 0.5 radius)."""
    offset = positions - centre.to(positions)
    squared = (offset**2).sum(-1, keepdim=True) / radius**2
    return positions - offset * (push / radius) * torch.exp(0.5 * (1 - squared))


def rigid_motion(image: Tensor, rotation: Tensor, shift: Tensor) -> Tensor:
    """Image (X, Y, Z) of a head that was turned about the centre of the volume and shifted, linearly interpolated.

    rotation: (3, 3), maps offsets from the centre before the motion to those after it. shift: (3,), voxels.
    Beyond the borders the image is held constant.
    """
    back = rotation.T
    # grid_sample counts axes backwards and in halves of the volume
    half = torch.tensor(image.shape[::-1]) / 2
    turn = back.flip(0, 1) * half / half[:, None]
    offset = -(back @ shift).flip(0) / half
    theta = torch.cat([turn, offset[:, None]], 1)[None].to(image)
    grid = affine_grid(theta, [1, 1, *image.shape], align_corners=False)
    return grid_sample(image[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
