"""MONAI's BasicUNet as the translators on voxels use it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.networks.nets.basic_unet import BasicUNet, UpCat
from torch import nn

from . import norms  # noqa: F401  (makes its layers known to MONAI)


class SmallestLevel(nn.Sequential):
    """The layers of the last level of MONAI's BasicUNet, which learn in float32.

    On CPUs the weights' gradient of a bfloat16 convolution over 2x2x2, 2x2x3 or 2x3x3 voxels depends on what memory
    held before (PyTorch 2.13): it is not a number now and then, or wrong. Crops of training are as small at that level.
    """

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(h)
        with torch.autocast(h.device.type, enabled=False):
            return super().forward(h.float())


def protect_smallest_level(unet: BasicUNet) -> None:
    """Make a :class:`SmallestLevel` of the last level; its weights keep their names and values."""
    unet.down_4 = SmallestLevel(OrderedDict(unet.down_4.named_children()))


def build_unet(in_channels: int, out_channels: int, *, features: Sequence[int]) -> BasicUNet:
    """A three-dimensional UNet with group norms; the sizes of what it is given must be multiples of 16.

    Args:
        features: the six widths of MONAI's BasicUNet, multiples of eight.
    """
    norm = ("group_keeping_layout", {"num_groups": 8})
    unet = BasicUNet(3, in_channels=in_channels, out_channels=out_channels, features=features, norm=norm)
    for module in unet.modules():
        if isinstance(module, UpCat):
            module.is_pad = False  # sizes are multiples of 16; to pad by nothing is a third of a training step
    protect_smallest_level(unet)
    return unet
