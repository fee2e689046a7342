"""Group normalisation that is fast to train in the memory layout of the convolutions."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Norm
from torch import nn


class GroupNorm(nn.GroupNorm):
    """PyTorch's group normalisation of (B, channels, X, Y, Z), the same function.

    It keeps the memory layout channels last, which makes the convolutions around it several times faster on CPUs. Its
    gradient, however, is ten times slower in that layout, so training takes a detour.
    """

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        channels_last = h.is_contiguous(memory_format=torch.channels_last_3d)
        if not (channels_last and h.requires_grad and h.device.type == "cpu"):
            return super().forward(h)
        return super().forward(h.contiguous()).contiguous(memory_format=torch.channels_last_3d)


class InstanceNorm(GroupNorm):
    """``nn.InstanceNorm3d`` as a group normalisation with one channel a group."""

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__(channels, channels, affine=affine)


Norm.add_factory_callable("group_keeping_layout", lambda dimensions: GroupNorm)  # for MONAI's networks
