"""Local mutual information: how much the window around a voxel in one image tells about the same window in another.

It stays the same when an image's intensities are mapped one to one, and so compares contrasts that never were seen
together (Wang et al. 2023, 2024). At every voxel, over the window's voxels i, with c_k the bins' centres::

    A_k(i) = exp(-((a_i - c_k) / w)^2 / 2) / sum_k' exp(-((a_i - c_k') / w)^2 / 2)       (Parzen weights, B alike)
    p(k, l) = mean_i A_k(i) B_l(i),     p(k) = mean_i A_k(i),     p(l) = mean_i B_l(i)
    I = H(a) + H(b) - H(a, b),          H = -sum p log p

The means are box filters, one axis after the other. The joint histogram is never held as a whole: bin after bin of the
first image is filtered, and filtered again in the backward pass. Weights are at least exp(FLOOR): a processor takes
several times as long for the tiny products of smaller ones. Where one figure for a whole image is meant, use MONAI's
``GlobalMutualInformationLoss``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product
from types import MappingProxyType
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .windows import MatrixSums, ShiftedSums, window_sums

TINY = 1e-12  # smallest count: the logarithm and its gradient stay finite
FLOOR = -40.0  # smallest logarithm of a weight beside the largest
SMALL = 1e-6  # smallest entropy to divide by, and smallest count of a window that is not empty

PUBLISHED = MappingProxyType(
    {
        "window": 3,
        "bins": 27,
        "width": 8 * 26 / 255,  # Gaussians of SD 8 around 27 centres from 0 to 255
        "value_range": (-27 / 26, 27 / 26),  # so that the centres are evenly spaced from -1 to 1, both included
        "reach": 1,
        "normalised": True,
        "corrected": False,
        "partition": False,
    }
)
"""Options of Wang et al. (2024) for images in [-1, 1]; at the border their windows hold zeros, here fewer voxels."""


def local_mutual_information(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    window: int = 7,
    bins: int = 8,
    width: float = 0.5,
    value_range: tuple[float, float] = (-1.0, 1.0),
    reach: int = 0,
    normalised: bool = False,
    corrected: bool = True,
    partition: bool = True,
    stride: int = 1,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Map of the mutual information of ``a`` and ``b`` in nats, differentiable in both.

    ``corrected`` subtracts the bias of few voxels::

        (I - E) (1 + E / min(H(a), H(b))),     E = f_a f_b / (2 (n - 1)),     f_a = sum_k mean(A_k^2) / mean(A_k) - 1

    E is the mean of I over all permutations of the n voxels of b within the window, to second order. f_a is the number
    of used bins less one where every voxel falls into one bin (Miller 1955), and fewer where the weights blur. The
    second factor gives back to images that tell all of each other what was subtracted (to first order the adjusted
    mutual information of Vinh et al. 2010). Corrected values can be negative. Measured on Gaussian noise of
    correlation rho, 8 bins in +-3 SD, mean over 4000 windows; "shuffled" is I less that of shuffled voxels, which
    costs a second histogram and is no better::

        voxels   rho = 0:   I   I - E  shuffled    this    rho = 0.9:  I  I - E  shuffled   this    (limit of large n)
            27          0.133  -0.011     0.000  -0.012            0.499  0.352     0.366  0.383     0.483
            49          0.087  -0.009     0.000  -0.010            0.497  0.400     0.410  0.423     0.483
           343          0.017  -0.001     0.000  -0.001            0.486  0.469     0.470  0.474     0.483

    The limit lies below -log(1 - rho^2) / 2 = 0.830, since bins and Parzen windows blur. Neighbouring voxels of smooth
    images are not independent: fewer than n voxels count, and some bias is left.

    Args:
        a, b: images (B, 1, X, Y) or (B, 1, X, Y, Z).
        window: edge of the window in voxels, odd; at the border, and along an axis shorter than it, it is cut.
        bins: equal intervals of ``value_range``.
        width: standard deviation w of the Parzen window in bins; near 0 the histogram is a hard one, whose gradient
            vanishes.
        value_range: values outside count in the end bins.
        reach: the largest value for windows of ``b`` that are shifted by up to so many voxels along each axis.
        normalised: 2 I / (H(a) + H(b)), in [0, 1] before the correction.
        corrected: subtract the bias.
        partition: divide by the sum over k' above. Without (as published) values outside the range hardly count.
        stride: distance of the windows' centres along each axis; the first lies on voxel 0.
        mask: bool (B, 1, *spatial), the voxels of both images that count; windows without any are 0.

    Returns:
        (B, 1, *spatial), each spatial size divided by ``stride`` and rounded up; float64 for float64, else float32.

    Raises:
        ValueError: for shapes that differ or are none of the above, a mask of another shape or type, a window that is
            even, or a correction without partition.
    """
    if a.shape != b.shape:
        raise ValueError(f"The images must have one shape, not {tuple(a.shape)} and {tuple(b.shape)}.")
    if a.ndim not in (4, 5) or a.shape[1] != 1:
        raise ValueError(f"The images must be (B, 1, X, Y) or (B, 1, X, Y, Z), not {tuple(a.shape)}.")
    if mask is not None and (mask.shape != a.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"The mask must be bool {tuple(a.shape)}, as the images, not {mask.dtype} {tuple(mask.shape)}."
        )
    if window % 2 == 0:
        raise ValueError(f"The window must be an odd number of voxels, not {window}.")
    if corrected and not partition:
        raise ValueError("The bias is known only for weights that sum to 1: use partition, or corrected=False.")
    inside = torch.ones_like(a, dtype=torch.bool) if mask is None else mask
    maps = []
    with torch.autocast(a.device.type, enabled=False):
        for offset in product(range(-reach, reach + 1), repeat=a.ndim - 2):
            both = inside & _shift(inside, offset)
            weights = [_weights(image, bins, width, value_range, partition) * both for image in (a, _shift(b, offset))]
            maps.append(_information(*weights, both, window, stride, normalised, corrected))
    return reduce(torch.maximum, maps)


def self_information(a: torch.Tensor, offsets: Sequence[Sequence[int]], **options: Any) -> torch.Tensor:
    """Maps of the mutual information of an image and itself, shifted: a local structure that contrasts share.

    Args:
        a: image (B, 1, X, Y) or (B, 1, X, Y, Z).
        offsets: voxels along each axis, from the window in ``a`` to the one that it is compared with.
        **options: of :func:`local_mutual_information`.

    Returns:
        (B, len(offsets), *spatial / stride).
    """
    mask = options.pop("mask", None)
    inside = torch.ones_like(a, dtype=torch.bool) if mask is None else mask
    maps = [
        local_mutual_information(a, _shift(a, offset), mask=inside & _shift(inside, offset), **options)
        for offset in offsets
    ]
    return torch.cat(maps, dim=1)


def _shift(image: torch.Tensor, offset: Sequence[int]) -> torch.Tensor:
    """image(x + offset), 0 (False) where that lies outside."""
    if not any(offset):
        return image
    padding = [n for d in reversed(offset) for n in (max(-d, 0), max(d, 0))]
    image = F.pad(image, padding)
    for axis, d in enumerate(offset, start=2):
        image = image.narrow(axis, max(d, 0), image.shape[axis] - abs(d))
    return image


def _weights(
    image: torch.Tensor, bins: int, width: float, value_range: tuple[float, float], partition: bool
) -> torch.Tensor:
    """Parzen weights (B, bins, *spatial) of an image (B, 1, *spatial)."""
    low, high = value_range
    position = (image.to(torch.promote_types(image.dtype, torch.float32)) - low) * (bins / (high - low))
    centres = torch.arange(bins, device=image.device).view(-1, *[1] * (image.ndim - 2)) + 0.5
    exponent = -0.5 * ((position - centres) / width).square()
    if not partition:
        return exponent.clamp_(min=FLOOR).exp_()
    return (exponent - exponent.amax(1, keepdim=True)).clamp(min=FLOOR).softmax(1)


def _information(
    a: torch.Tensor,
    b: torch.Tensor,
    both: torch.Tensor,
    window: int,
    stride: int,
    normalised: bool,
    corrected: bool,
) -> torch.Tensor:
    """Map of the mutual information of two images, given their weights (B, bins, *spatial), 0 where not ``both``."""
    box = window_sums(a.shape[2:], window, stride, a)
    a, b = box.lay_out(a), box.lay_out(b)

    def marginal(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Entropy and, for the bias, f."""
        counts = box(x)
        entropy = _entropy(_plogp(counts), counts.sum(1, keepdim=True))
        if not corrected:
            return entropy, 0.0
        return entropy, (box(x.square()) / counts.clamp_min(TINY)).sum(1, keepdim=True) - 1

    (h_a, f_a), (h_b, f_b) = marginal(a), marginal(b)
    rows = sum(_Row.apply(a_k, b, box) for a_k in a.split(1, dim=1))
    total = box(a.sum(1, keepdim=True) * b.sum(1, keepdim=True))
    information = h_a + h_b - _entropy(rows, total)
    if corrected:
        voxels = box(box.lay_out(both.to(a.dtype)))
        bias = f_a * f_b / (2 * (voxels - 1).clamp_min(1))
        information = (information - bias) * (1 + bias / torch.minimum(h_a, h_b).clamp_min(SMALL))
    if normalised:
        information = 2 * information / (h_a + h_b).clamp_min(SMALL)
    return box.restore(torch.where(total > SMALL, information, 0))


class _Row(torch.autograd.Function):
    """sum_l c_l log c_l of a row of the joint histogram, c_l = box(A_k B_l).

    The backward pass computes the row again: nothing but the weights is kept, and one row in memory at a time.
    """

    @staticmethod
    def forward(ctx: Any, a_k: torch.Tensor, b: torch.Tensor, box: MatrixSums | ShiftedSums) -> torch.Tensor:
        ctx.save_for_backward(a_k, b)
        ctx.box = box
        return _plogp(box(a_k * b))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        a_k, b = ctx.saved_tensors
        slope = ctx.box(a_k * b).clamp_min_(TINY).log_().add_(1).mul_(gradient)
        slope = ctx.box.adjoint(slope)
        for_a = (slope * b).sum(1, keepdim=True) if ctx.needs_input_grad[0] else None
        return for_a, slope.mul_(a_k) if ctx.needs_input_grad[1] else None, None


def _plogp(counts: torch.Tensor) -> torch.Tensor:
    """sum c log c over the bins."""
    return (counts * counts.clamp_min(TINY).log()).sum(1, keepdim=True)


def _entropy(plogp: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """-sum p log p with p = c / total."""
    total = total.clamp_min(TINY)
    return total.log() - plogp / total
