"""Sums over the window around every voxel, and their adjoint, for maps (B, K, *spatial) of two or three dimensions.

At the border windows are cut. There are two ways, of which each is faster on a CPU than the other, and than pooling,
where it is at home: products with matrices for large windows and strides, and sums of shifted copies for windows of
three voxels (``Testing/benchmark/mutual_information.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch.nn import functional as F


def window_sums(shape: Sequence[int], window: int, stride: int, like: torch.Tensor) -> MatrixSums | ShiftedSums:
    """The faster of the two.

    Args:
        shape: of the images, in voxels.
        window: edge of the window in voxels, odd.
        stride: distance of the windows' centres along each axis; the first lies on voxel 0.
        like: of the dtype and on the device of the maps.
    """
    return ShiftedSums(shape) if (window, stride) == (3, 1) else MatrixSums(shape, window, stride, like)


class MatrixSums:
    """One axis after the other, as the product with the matrix (centres, voxels) that is 1 within the window."""

    def __init__(self, shape: Sequence[int], window: int, stride: int, like: torch.Tensor) -> None:
        voxels = [torch.arange(n, device=like.device) for n in shape]
        self.bands = [((v[::stride, None] - v).abs() <= window // 2).to(like.dtype) for v in voxels]

    def lay_out(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, K, *spatial) as the sums take them."""
        return maps

    def restore(self, sums: torch.Tensor) -> torch.Tensor:
        """What came of the sums as (B, K, *spatial / stride)."""
        return sums

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        return self._products(maps, self.bands)

    def adjoint(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to the maps, given that of their sums."""
        return self._products(gradient, [band.T for band in self.bands])

    @staticmethod
    def _products(x: torch.Tensor, bands: list[torch.Tensor]) -> torch.Tensor:
        *others, last = bands
        for axis, band in enumerate(others, start=2):
            x = (band @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])
        return x @ last.T


class ShiftedSums:
    """Windows of 3 voxels, stride 1. Maps are laid out as one row of voxels, (B, K, N), each axis but the first ending
    in a voxel of zero: a step along any axis is then a step along the row, and no window reaches around a border."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.padded = (self.shape[0], *(n + 1 for n in self.shape[1:]))
        self.steps = [prod(self.padded[axis + 1 :]) for axis in range(len(shape))]

    def lay_out(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (B, K, *spatial) as the sums take them."""
        return F.pad(maps, [n for _ in self.shape[1:] for n in (0, 1)]).flatten(2)

    def restore(self, sums: torch.Tensor) -> torch.Tensor:
        """What came of the sums as (B, K, *spatial)."""
        return sums.unflatten(2, self.padded)[(..., *(slice(n) for n in self.shape))]

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            count = maps.shape[-1] - step
            sums = maps.clone()
            if count > 0:
                sums[..., step:] += maps[..., :count]
                sums[..., :count] += maps[..., step:]
            maps = sums
        return maps

    def adjoint(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient with respect to the maps, given that of their sums, which is 0 outside the images."""
        return self(gradient)
