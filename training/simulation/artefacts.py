"""What an acquisition does to an ideal image: bias, motion, finite and thick voxels, noise.

Resampling, blur and motion act along one axis at a time and are written as matrices, so that a volume of N^3 voxels
costs three small matrix products whatever the width of the profile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from training.simulation.randomness import (
    apply_matrices,
    chance,
    gaussian_matrix,
    integer,
    smooth_sum,
    uniform,
)

THICK = 2.0  # mm, of slices that blur the edge of a brain which was stripped before
TRACE = 0.001  # share of the head in a voxel, below which it is background


def slice_matrix(size: int, thickness: float, spacing: float, offset: float = 0.0, *, box: bool = False) -> Tensor:
    """(slices, size) matrix that acquires slices of `thickness` voxels every `spacing` voxels.

    A Gaussian profile with a full width at half maximum of `thickness`, or a box; every row sums to 1.
    """
    count = max(int((size - offset) / spacing), 1)
    centres = offset + (torch.arange(count) + 0.5) * spacing - 0.5
    distance = (torch.arange(size) - centres[:, None]).abs()
    if box:
        weights = (thickness / 2 + 0.5 - distance).clamp(0, 1)
    else:
        weights = torch.exp(-4 * math.log(2) * (distance / thickness) ** 2)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


def interpolation_matrix(size: int, count: int, spacing: float, offset: float = 0.0, *, cubic: bool = False) -> Tensor:
    """(size, count) matrix that interpolates slices (positions as in `slice_matrix`) back to every voxel.

    Linear, or cubic convolution (Keys 1981, a = -0.5); beyond the outer slices the image is held constant.
    """
    position = ((torch.arange(size) + 0.5 - offset) / spacing - 0.5).clamp(0, count - 1)
    reach = 2 if cubic else 1
    base = position.floor()
    matrix = torch.zeros(size, count)
    for step in range(1 - reach, reach + 1):
        node = base + step
        x = (position - node).abs()
        if cubic:
            weight = torch.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
        else:
            weight = (1 - x).clamp(min=0)
        matrix.scatter_add_(1, node.long().clamp(0, count - 1)[:, None], weight[:, None])
    return matrix


def motion_matrices(size: int, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary (size, size) matrices of a scan whose k-space line k was taken at `shifts[k]` voxels.

    Translation along the axis multiplies each line by a phase (shift theorem); periodic shifts give ghosts.
    """
    frequency = torch.fft.fftfreq(size)
    fourier = torch.fft.fft(torch.eye(size), dim=0)
    phase = torch.exp(-2j * math.pi * frequency * shifts)
    matrix = torch.fft.ifft(phase[:, None] * fourier, dim=0)
    return matrix.real.contiguous(), matrix.imag.contiguous()


def random_shifts(size: int, generator: Generator) -> Tensor:
    """Shifts per k-space line: a periodic motion (ghosts) or a few sudden ones off the centre of k-space (blur)."""
    if chance(generator, 0.5):
        period, amplitude = uniform(generator, 2.5, 12), uniform(generator, 0.2, 1.2)
        return amplitude * torch.sin(2 * math.pi * torch.arange(size) / period + uniform(generator, 0, 6.28))
    shifts = torch.zeros(size)
    for _ in range(integer(generator, 1, 3)):
        start = integer(generator, size // 20, size // 2)
        shifts[start:] += uniform(generator, -2.5, 2.5)
    return shifts


def bias_field(
    shape: Sequence[int], deviation: float, spacing: float, generator: Generator, device: torch.device | str
) -> Tensor:
    """(X, Y, Z) positive factors of the receive coil: exp of a smooth field of `deviation` that varies over `spacing`
    voxels."""
    return smooth_sum(generator, shape, [(deviation, spacing)], device).exp_()


def rician(image: Tensor, sigma: Tensor | float, generator: Generator) -> Tensor:
    """Magnitude of the image with independent Gaussian noise of SD `sigma` in its real and its imaginary part
    (Gudbjartsson and Patz, Magn. Reson. Med. 1995). `generator` is of the image's device."""
    real, imaginary = (torch.randn(image.shape, generator=generator, device=image.device) for _ in range(2))
    return torch.hypot(real.mul_(sigma).add_(image), imaginary.mul_(sigma))


def power(image: Tensor, gamma: float, peak: Tensor | float) -> Tensor:
    """(image / peak)^gamma: keeps air and `peak`, and changes the contrast between."""
    return (image / (peak + 1e-6)) ** gamma


def acquire(
    image: Tensor,
    generator: Generator,
    noise_generator: Generator,
    *,
    strength: float = 1.0,
    brain_mask: Tensor | None = None,
) -> tuple[Tensor, dict]:
    """One realistic acquisition of an ideal (X, Y, Z) image, and the parameters drawn.

    With `brain_mask`, bool (X, Y, Z), the image is zero outside it. Slices of more than 2 mm were resampled after the
    skull was stripped: their edge is as blurred as all else. Thinner ones keep a sharp edge: where all edges may be
    blurred, fluid under the brain's surface can no longer be told from its edge, and in T2 is made too dark.

    In order: multiplicative bias field; motion along a random axis (one in eight); blur in plane, and in half of the
    draws slices of 1 to 7 mm with gaps along a random axis, the first of them at a random place; Rician noise on the
    acquired slices; interpolation back to the grid; gamma. `strength` 0 leaves all but a minimal blur out.
    """
    device, shape = image.device, image.shape
    drawn: dict[str, float | int | bool] = {}
    bias = strength * uniform(generator, 0, 0.3)
    image = image * bias_field(shape, bias, max(shape) / uniform(generator, 1, 2.5), generator, device)
    drawn["bias"] = bias
    if chance(generator, 0.125 * strength):
        axis = integer(generator, 0, 2)
        parts = motion_matrices(shape[axis], random_shifts(shape[axis], generator))
        real, imaginary = (
            apply_matrices(image, [m.to(device) if k == axis else None for k in range(3)]) for m in parts
        )
        image = torch.hypot(real, imaginary)
        drawn["motion_axis"] = axis

    thick = chance(generator, 0.5 * strength)
    thick_axis = integer(generator, 0, 2)
    in_plane = uniform(generator, 0.3, 0.3 + 0.45 * strength)
    acquired: list[Tensor | None] = []
    restored: list[Tensor | None] = []
    for axis, size in enumerate(shape):
        if thick and axis == thick_axis:
            thickness = min(max(uniform(generator, 0.5, 7), 1.0), size / 8)
            spacing = thickness * uniform(generator, 1.0, 1.2)
            offset = uniform(generator, 0, 1) * min(spacing, 1.5)
            down = slice_matrix(size, thickness, spacing, offset, box=chance(generator, 0.3))
            up = interpolation_matrix(size, len(down), spacing, offset, cubic=chance(generator, 0.6))
            acquired.append(down.to(device))
            restored.append(up.to(device))
            drawn |= {"slice_axis": axis, "slice_thickness": thickness, "slice_spacing": spacing}
        else:
            acquired.append(gaussian_matrix(size, in_plane, device))
            restored.append(None)
    stripped_before = brain_mask is not None and drawn.get("slice_thickness", 0) > THICK
    image = apply_matrices(image * brain_mask if stripped_before else image, acquired)
    share = apply_matrices(brain_mask.float(), acquired) if stripped_before else None

    noise = strength * uniform(generator, 0, 0.045) * (0.5 if chance(generator, 0.5) else 1.0)
    peak = image[::3, ::3, ::3].flatten().kthvalue(max(int(0.98 * image[::3, ::3, ::3].numel()), 1)).values
    if noise > 0:
        image = rician(image, noise * peak if share is None else noise * peak * share, noise_generator)
    image = apply_matrices(image, restored).clamp(min=0)
    if brain_mask is not None:
        image = image * ((apply_matrices(share, restored) > TRACE) if stripped_before else brain_mask)
    drawn["noise"] = noise
    if chance(generator, 0.3 * strength):
        gamma = math.exp(uniform(generator, -0.3, 0.3))
        image = power(image, gamma, peak)
        drawn["gamma"] = gamma
    return image, drawn
